"""The wire: the kinds of `imagegate.dev`, image references, and the CRDs made from them."""
