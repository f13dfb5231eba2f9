"""The road from request to response, one pipeline a kind of model."""
