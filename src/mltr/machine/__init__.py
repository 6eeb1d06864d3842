"""Machine-dependent code: precision, memory, processes, and sharding of a network over them.

Nothing here knows what is computed.
"""
