"""What proves an image: its SBOM, its provenance and its signature, and the checks of them."""
