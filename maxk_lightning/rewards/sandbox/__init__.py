"""The sandbox: a pool of warm fork servers that run untrusted programs. Kept empty: servers load single files."""
