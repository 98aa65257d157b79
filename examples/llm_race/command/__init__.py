"""The command line: `options` reads it, `commands` carries it out, `display` shows a race."""
