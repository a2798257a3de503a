"""What the images of this package have in common. Matplotlib."""

# Dark where pixels contribute much, as in the paper; even steps of lightness, also in gray.
COLORS = 'YlGnBu'


def new_figure(width: float, height: float, layout: str | None = 'constrained', dpi: int = 300):
    """A figure for `savefig`, without a window system and without state of the whole process.

    Args:
        width (float): In inches, as ``height``.
        height (float): In inches.
        layout (str, optional): Matplotlib's layout engine. Defaults to 'constrained'.
        dpi (int): Dots to the inch. Defaults to 300.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor='white')
    FigureCanvasAgg(figure)
    return figure
