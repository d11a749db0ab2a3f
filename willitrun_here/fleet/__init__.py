"""The fleet inventory: the agent that reports a machine, the server that stores reports, the questions one asks it.

The agent side (`document`, `facts`, `identity`, `spool`, `send`, `agent`) needs the standard library and msgspec alone.
The server side (`store`, `writer`, `app` …) needs the extra `fleet`.
"""
