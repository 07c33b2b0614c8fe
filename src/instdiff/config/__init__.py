"""Configuration: strict typed trees from YAML, options and overrides."""
