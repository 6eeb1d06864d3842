"""What depends on the machine: number formats, memory, processes, networks divided among them.

Nothing here knows what is computed.
"""
