"""API types: the kinds of `imagegate.dev`, image references, and the CRDs made from the kinds."""
