"""`mltr serve`: an HTTP API and a page for a trained network.

`app.create_app` makes the application and `command` runs it. `settings` are its limits, `uploads`
takes bodies in, `batching` brings images together for the network, `observe` logs and counts.
"""
