"""The codec: everything that a state may hold, as JSON text and back.

``codec`` is the way in. ``tags`` defines how each type is written, ``objects`` does so for users'
classes, and ``typenames`` finds classes again without importing anything.
"""
