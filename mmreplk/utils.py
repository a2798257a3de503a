"""What ``mmengine.hub.get_model`` asks every package of its table for, under this name."""


def register_all_modules() -> None:
    """Register everything of mmreplk; the models of its configs name their codebase themselves."""
    import mmreplk  # noqa: F401
