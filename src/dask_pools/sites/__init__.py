"""Control hosts: reaching them over SSH, the agent that runs there, and what the two say to each other.

`protocol` is what is said, `home` where an agent keeps its files, `agent` what it does, `cli` how it is
started; all of these run on the control host. `ssh`, `site` and `networks` are the cluster's end.
"""
