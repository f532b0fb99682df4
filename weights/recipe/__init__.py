"""How nano.pt is made and measured: grammars, synthetic speech, training windows, losses, stages, evaluation.

Nothing of the plugin imports this package. Run its commands from the folder that holds it::

    python -m recipe.train --help
    python -m recipe.evaluate --help
"""
