"""YAML without a key that is written twice.

Lives here: loading the text of a `defs.yaml`. Add here: nothing.
Not here: what may stand in it (`spec.py`), sentences about it (`spec_file.py`).
"""

from typing import Any

import yaml

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class KeyTwiceError(ValueError):
    """A key stands twice in one mapping, of which YAML silently forgets the first; its text says where."""


def load_yaml(text: str) -> Any:
    """What `text` says. Raises `KeyTwiceError`, and `yaml.YAMLError` for what is not YAML."""
    loader = _LOADER(text)
    try:
        root = loader.get_single_node()
        _once(root)
        return loader.construct_document(root) if root else None
    finally:
        loader.dispose()


def _once(root: yaml.Node | None) -> None:
    waiting, met = [root], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in met:
            continue
        met.add(id(node))  # An alias is the node it names, which may be around it.
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        seen = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise KeyTwiceError(f"line {key.start_mark.line + 1}: '{name}' stands there a second time")
            seen.add(name)
            waiting.append(value)
