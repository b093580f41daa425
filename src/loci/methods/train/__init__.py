"""Methods that change what a model learned: edits of facts, each reversible by construction."""
