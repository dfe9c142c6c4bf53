"""A template's syntax tree with counters in it: no body, list or comparison goes unnoticed.

What jinja2's sandbox intercepts by itself (calls, operators, filters) is not touched here.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer


def with_counters(template: nodes.Template) -> nodes.Template:
    """The tree, which now calls `enter`, `stepped`, `kept` and `joined` of its environment."""
    counted = _Counters().visit(template)
    assert isinstance(counted, nodes.Template)
    return counted


class _Counters(NodeTransformer):
    """Each `visit_` is named after a class of nodes, as jinja2 looks it up."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        for name in ("body", "else_"):
            body = getattr(node, name, None)
            # An empty body may be passed through as often as another; an empty `else` is none.
            if isinstance(body, list) and (body or name == "body"):
                entry = _call("enter", [nodes.Const(_num_chars(body))], node.lineno)
                body.insert(0, nodes.ExprStmt(entry, lineno=node.lineno))
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is not None:  # what it turns away never comes to the body
            stepped = _call("stepped", [], node.lineno)
            node.test = nodes.And(stepped, node.test, lineno=node.lineno)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._kept(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx != "load":
            return self.generic_visit(node)
        return self._kept(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        parts = [part for pair in node.items for part in (pair.key, pair.value)]
        return self._kept(node, parts)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        return self._kept(node, None)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        return self._kept(node, None)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Slice):
            return self._kept(node, None)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def _kept(self, node: nodes.Expr, parts: list[nodes.Expr] | None) -> nodes.Node:
        """A value that is paid for; a list of constants is as large as it is written."""
        if parts is not None and all(isinstance(part, nodes.Const) for part in parts):
            return node
        return _call("kept", [self.generic_visit(node)], node.lineno)


def _call(name: str, args: list[Any], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(function, args, [], None, None, lineno=lineno)


def _num_chars(body: list[nodes.Node]) -> int:
    """What a body writes whatever the values are."""
    outputs = [part for node in body if isinstance(node, nodes.Output) for part in node.nodes]
    return sum(len(part.data) for part in outputs if isinstance(part, nodes.TemplateData))
