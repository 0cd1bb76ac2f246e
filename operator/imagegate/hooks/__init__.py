"""Push events of registries: one file a source. An event never names what is pulled; it only makes
the operator ask the registry, so a forged one costs one question.
"""
