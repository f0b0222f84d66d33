"""What `benchmarks.gateway` sets beside the gateway: peers, a load client, a profiled start.

Each module is a process of its own. They know HTTP and nothing of the gateway's insides.
"""
