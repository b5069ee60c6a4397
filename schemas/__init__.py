"""The contracts every part of Millrace shares. Imports nothing of ours."""
