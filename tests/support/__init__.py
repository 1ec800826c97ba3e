"""Real parts to test against, and a model whose every computation can be told from the others."""
