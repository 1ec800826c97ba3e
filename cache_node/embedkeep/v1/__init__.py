"""The wire: embedkeep.v1 as .proto files and what is generated from them (`make proto`).

Nothing here is written by hand but the .proto files and this text. Everyone may import it.
"""
