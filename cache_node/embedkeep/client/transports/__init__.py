"""How a client's requests reach nodes: over gRPC, or over HTTP/1.1 with the same messages.

One request in, one answer or one `EmbedKeepError` out; retries, cutting and deadlines of a whole
call are decided before, in `embedkeep.client.exchange`. Which way it is, the target says:
``http://`` and ``https://`` are HTTP, all else is gRPC's (`choosing`). `grpc_sync` and `grpc_aio`
hold channels; `http_sync` (with `http_connection`) and `http_aio` hold connections. What both of
the latter know is pure: targets (`origins`), which address is next (`rotation`), which connections
are kept (`pooling`), a request's bytes and an answer's meaning (`messages`), and reading an answer
off a connection (`reply`). Only `embedkeep.client.sync` and `.aio` call it.
"""
