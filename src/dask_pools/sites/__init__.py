"""Control hosts: the agent that runs there for the life of a cluster, and what the two say to each other.

`protocol` is what is said, `home` where an agent keeps its files, `agent` what it does, `cli` how it is
started; all of these run on the control host.
"""
