"""The node's HTTP facades: OpenAI's embeddings API and that of text-embeddings-inference (TEI).

Here live the `server`; what every connection meets first, and which calls go no further
(`entrance`, `plain`); what is read from request headers and said in response headers (`headers`);
which path is answered by what (`routes`, `facades`); bodies in and out (`bodies`); the way from a
request to vectors (`asking`); a module for each API (`openai`, `tei`); the OpenAPI `document` of
them; and the service's own messages over HTTP (`connect`). What an answer is, who may call and how
much is `embedkeep.node.calls`' business, as it is for gRPC. Only `embedkeep.node.main` calls it.
"""
