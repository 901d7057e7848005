"""Term lists and glosses extracted from WordNet 3.0 (see WORDNET-LICENSE.txt)."""
