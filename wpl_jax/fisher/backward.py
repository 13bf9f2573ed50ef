"""The backward pass of one example, as two jaxprs that are run for many at once."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from wpl_jax.fisher.program import Program, depends, for_one, held_bytes, run, size_in_bytes
from wpl_jax.fisher.uses import Use
from wpl_jax.varying import varying_as


@dataclasses.dataclass(frozen=True)
class Backward:
    """Of a program whose uses have probes, and of which other parameters are differentiated."""

    forward: Any  # a closed jaxpr: values, an example -> output, captured operands, residuals
    back: Any  # a closed jaxpr: residuals, a cotangent -> gradients of probes, of parameters
    kept: Any  # structure of the forward pass's results
    found: Any  # structure of the backward pass's results
    of_example: tuple[bool, ...]  # which residuals depend on the example
    idle: frozenset[int]  # uses and parameters, by place and number, whose gradient JAX knows is 0
    held: int  # bytes that exist at once for one example
    gradient: int  # bytes of the gradients of parameters, which are among them
    closed_over: bool  # whether custom derivatives use traced values that the program does not

    @classmethod
    def of(
        cls,
        program: Program,
        uses: Sequence[Use],
        marked: Sequence[int],
        prepare: Callable[[Any], Mapping[int, Any]],
        params: Any,
        batch: Sequence[Any],
        written: Callable[[Any, Any], jax.Array] | None = None,
    ) -> "Backward":
        """Trace it.

        Args:
          program: of one example.
          uses: whose results get probes.
          marked: parameters, by number, whose gradient is left to JAX.
          prepare: computes from the parameters, before an example is seen, the values that the
            program needs, by number.
          params: what it is given, arrays or their shapes.
          batch: arrays with a leading axis of examples, or their shapes.
          written: a function of parameters and an example to differentiate in place of the program.
        """
        captures = {use.place: use.other for use in uses}
        inside: dict[int, frozenset[int]] = {}
        for use in uses:
            for place in use.within:
                inside[place] = inside.get(place, frozenset()) | {use.place}
        examples = program.inputs[len(program.inputs) - len(batch) :]
        traced: list[Any] = []

        def forward(values, example):
            given = dict(zip(examples, example, strict=True))

            def differentiated(parameters, probes):
                known = {**values, **given, **parameters}
                if written is not None:
                    leaves = [known[number] for number in program.inputs[: -len(batch)]]
                    return written(leaves, example), {}
                outputs, captured = run(program, known, probes, captures, inside)
                return outputs[0], captured

            # Each varies as the result does that it is added to: else its gradient is a sum.
            probes = {
                use.place: varying_as(jnp.zeros(use.probe.shape, use.probe.dtype), use.aval)
                for use in uses
            }
            parameters = {number: values[number] for number in marked}
            output, pullback, captured = jax.vjp(differentiated, parameters, probes, has_aux=True)
            residuals, structure = jax.tree.flatten(pullback)

            def back(residuals, cotangent):
                parameters, probes = jax.tree.unflatten(structure, residuals)(cotangent)
                return probes, parameters

            jaxpr, found = jax.make_jaxpr(back, return_shape=True)(residuals, output)
            if any(isinstance(x, jax.core.Tracer) for x in jaxpr.consts):
                # A rule of the user's closes over what is computed of the example: residuals, too.
                count, of_consts = len(jaxpr.consts), jaxpr.jaxpr
                residuals = [*jaxpr.consts, *residuals]

                def back_of_all(residuals, cotangent):
                    closed = core.ClosedJaxpr(of_consts, residuals[:count])
                    return core.jaxpr_as_fun(closed)(*residuals[count:], cotangent)

                jaxpr = jax.make_jaxpr(back_of_all)(residuals, output)
            traced.append((jaxpr, found))
            return output, captured, residuals

        jaxpr, kept = for_one(forward, params, batch, prepare)
        back, found = traced[-1]
        count = len(jaxpr.in_avals)
        counted = [i >= count - len(batch) for i in range(count)]
        size = len(jaxpr.out_avals) - len(kept[2])  # of the output and what is captured
        of_results = depends(jaxpr, counted)
        captured = sum(map(size_in_bytes, jaxpr.out_avals[:size]))
        held = max(
            held_bytes(jaxpr, counted), captured + held_bytes(back, [*of_results[size:], True])
        )
        gradient = sum(map(size_in_bytes, jax.tree.leaves(found[1])))
        structures = jax.tree.structure(kept), jax.tree.structure(found)
        flows = depends(back, [*[False] * (len(back.in_avals) - 1), True])
        of_uses, of_marked = jax.tree.unflatten(structures[1], flows)
        idle = frozenset(n for n, flowing in {**of_uses, **of_marked}.items() if not flowing)
        of_program = {id(x) for x in program.constants.values()}
        closed_over = any(
            isinstance(x, jax.core.Tracer) and id(x) not in of_program
            for x in (*jaxpr.consts, *back.consts)
        )
        of_example = tuple(of_results[size:])
        return cls(jaxpr, back, *structures, of_example, idle, held, gradient, closed_over)

    def run(
        self, values: Mapping[int, Any], batch: Sequence[Any]
    ) -> tuple[jax.Array, dict[int, Any], Callable[[jax.Array], Any]]:
        """Evaluate all examples of a batch.

        Returns:
          Outputs; operands of uses, by place; and a function from the outputs' cotangents to the
          gradients of the uses' results, by place, and of parameters, by number. All have a leading
          axis of examples.
        """
        size = len(batch[0])
        shared = jax.tree.leaves(dict(values))
        of_residuals = [0 if of_example else None for of_example in self.of_example]
        others = self.kept.num_leaves - len(of_residuals)
        forward = jax.vmap(
            _applied(self.forward),
            [None] * len(shared) + [0] * len(batch),
            (*[0] * others, *of_residuals),
            axis_size=size,
        )
        results = forward(*shared, *batch)
        outputs, captured, residuals = jax.tree.unflatten(self.kept, results)
        back = jax.vmap(_applied(self.back), [*of_residuals, 0], axis_size=size)

        def pullback(cotangents):
            return jax.tree.unflatten(self.found, back(*residuals, cotangents))

        return outputs, captured, pullback


def _applied(jaxpr):
    def apply(*operands):
        return tuple(core.jaxpr_as_fun(jaxpr)(*operands))

    return apply
