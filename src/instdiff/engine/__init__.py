"""The engine: models, and the one sweep that reads every measure off them. Never imports a method."""
