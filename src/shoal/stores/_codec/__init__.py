"""The codec: convert everything that a state may hold to JSON text and back.

``codec`` has the public class. ``tags`` defines how each type is written, ``objects`` does so for
users' classes, and ``typenames`` finds classes again without importing anything. ``plain`` reads
what is stored as people do, without any of that.
"""
