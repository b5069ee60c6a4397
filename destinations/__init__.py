"""The plugin contract, the registry and one module per destination."""
