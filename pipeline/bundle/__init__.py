"""Bundles: all that a build takes from the network, and what came of it, in one OCI layout."""
