"""Fine-tuning a language model without losing the text that it was pretrained on.

A small transformer (Flax NNX, 5 million parameters) learns the Penn Treebank, and is then
fine-tuned on Python's help topics: all of its parameters, or LoRA adapters. Each way to keep the
old text has a knob, and every setting of it is a run, so that each way is a curve and not a point.

    WPL_DATA_DIR=<folder with ptb/> python -m examples.finetune_language_model

takes under 30 minutes on two idle cores, and goes on where it was killed. Without ``WPL_DATA_DIR``
the old text is one half of the help topics and the new text the other, and the output says so.
``--smoke`` runs all of it in seconds, with a tiny model, to see that it works.

    python -m examples.finetune_language_model --report

draws the figure and writes the tables of ``docs/finetuning.md`` from the results that are kept in
``results.json`` here. ``--publish`` runs, puts its results in their place, and does the same.

====================  ============================================================================
:mod:`.texts`         the two texts, in one vocabulary
:mod:`.model`         the transformer, its loss, and LoRA on it
:mod:`.tuning`        a training step for each way to fine-tune: **where plasticity comes in**
:mod:`.runs`          the settings, pretraining, the runs and what they cost
:mod:`.report`        tables and figure
====================  ============================================================================
"""
