"""`mltr serve`: an HTTP API and a page for a trained network.

`app.create_app` makes the application and `server` runs it. `settings` holds its limits, `uploads`
reads request bodies, `batching` batches images for the network, `observe` logs and counts.
"""
