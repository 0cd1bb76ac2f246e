"""Push events of registries: one file per source. An event never decides which image is pulled. It
only causes a request to the registry, so that a forged event costs one request.
"""
