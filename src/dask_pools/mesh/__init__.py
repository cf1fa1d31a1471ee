"""The private WireGuard network of one cluster: its plan, and one host's part of it."""
