from tpu.hlo import Collective, collectives

PROGRAM = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%round (p: (s32[], /*index=1*/bf16[8,4])) -> (s32[], bf16[8,4]) {
  %gathered = bf16[8,4]{1,0:T(8,128)} all-gather(%part), replica_groups={{0,1}}, dimensions={0}
}

%again (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%fused (q: f32[2,3]) -> f32[2,3] {
  ROOT %reduced.1 = f32[2,3]{1,0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%sum
}

%rare (q: f32[2]) -> f32[2] {
  ROOT %scattered = f32[2]{0} reduce-scatter(%q), dimensions={0}, to_apply=%sum
}

%begun (q: f32[2]) -> f32[2] {
  %gathered.1 = f32[2]{0} all-gather(%q), dimensions={0}
}

%async_collective_fusion.7 (q: f32[2]) -> f32[2] {
  %product = f32[9]{0} dot(%u, %v)
  %gathered.2 = f32[2]{0} all-gather(%q), dimensions={0}
}

%ended (q: f32[2]) -> f32[2] {
  %gathered.3 = f32[2]{0} all-gather(%q), dimensions={0}
}

%never (q: f32[2]) -> f32[2] {
  ROOT %q = f32[2]{0} parameter(0)
}

ENTRY %main (x: f32[2,3], /*index=5*/y: s32[]) -> f32[2,3] {
  %loop = (s32[], bf16[8,4]) while(%t), condition=%again, body=%round, \
backend_config={"known_trip_count":{"n":"5"}}
  %data = (s32[], bf16[8,4]) while(%t), condition=%again, body=%round
  %made = f32[2,3]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %start = (f32[4]{0}, f32[8]{0}) all-gather-start(%z), dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  %async-collective-start.5 = (f32[1], f32[2]) fusion(%x), kind=kCustom, calls=%begun
  %fusion.7 = (f32[9], f32[2]) fusion(%x), kind=kCustom, calls=%async_collective_fusion.7
  %async-collective-done.5 = f32[2]{0} fusion(%fusion.7), kind=kCustom, calls=%ended
  %across = (f32[16]{0}, u32[], token[]) recv(%token), channel_id=3, is_host_transfer=true
  %came = (f32[16]{0}, token[]) recv-done(%across), channel_id=3, is_host_transfer=true
  %either = f32[2]{0} conditional(%p, %u, %v), branch_computations={%rare, %never}
  %both = (s32[]{:T(128)}, s32[]) all-reduce(%m, %n), to_apply=%sum
  %first = s32[] get-tuple-element(%both), index=0, metadata={op_name="all-reduce(x)"}
}
"""


def test_loops_fusions_branches_and_pairs_are_each_counted_as_they_run():
    found = collectives(PROGRAM, unknown_trips=3)
    assert found == {
        # Eight rounds of 64 bytes, one pair of 32, and one of 8 beside a product.
        "all-gather": Collective(count=10, bytes=8 * 64 + 32 + 8),
        "all-reduce": Collective(count=2, bytes=24 + 8),
        "recv-done": Collective(count=1, bytes=64),
        "reduce-scatter": Collective(count=1, bytes=8),
    }
    # The other branch sends nothing.
    del found["reduce-scatter"]
    assert collectives(PROGRAM, 3, least=True) == found


def test_a_program_for_one_device_sends_nothing():
    assert collectives("ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] x\n}\n", 1) == {}
