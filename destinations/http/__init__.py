"""Our HTTP/1.1 client: one request at a time on a connection, nothing followed, nothing decoded, everything bounded.

`client.py` is what callers see; `request.py` and `answer.py` what goes out and comes back; `connection.py` speaks, `pool.py` keeps
connections, `dial.py` makes them.
"""
