"""The pools, and what is built on them."""
