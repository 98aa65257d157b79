"""Asks providers of language models; knows nothing of races, nor of shoal.

- `exchange`: prompts and answers, and the pieces of which an answer is made.
- `failures`: what goes wrong in an exchange, and how to react; judges exceptions of SDKs, too.
- `providers`: a provider, and the four protocols; `prices`: what an exchange costs, and a budget.
- `config`: the providers of a file or of the environment.
"""
