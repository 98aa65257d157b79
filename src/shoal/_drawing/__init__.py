"""Drawings of graphs, as Mermaid, DOT and SVG: functions of values, with no import but Python's.

- ``figure``: what is drawn: boxes inside boxes, and the links between neighbours. Figures of acts
  are made by ``_graph.picture``.
- ``mermaid``, ``dot``: figures as text, which other programs lay out.
- ``svg``: figures as pictures. ``layout`` gives each box its place, from the inside outwards;
  ``layers`` does that for one graph; ``routes`` has the lines between boxes. ``lettering`` has the
  widths of texts, ``style`` the colours.
"""
