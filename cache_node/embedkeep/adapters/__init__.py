"""A cache as the embedding model of a framework: one module a framework, which imports only that.

`langchain` and `llama_index`; what they share is `asking`. Each takes clients that the caller has
made and closes, and asks for the prompts `query` and `document` where the cache has them. What a
call does, `embedkeep.client` decides. Services import these; nothing else here does.
"""
