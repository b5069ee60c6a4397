"""The warehouse in one DuckDB file: a schema per source, a table per call type, one more per event name.

`file.py` is the open file, `load.py` what a transaction puts into it, `forget.py` what one takes out; `destination.py` is what the
engine sees.
"""
