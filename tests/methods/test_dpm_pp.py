"""DPM++: what each stage moves, what every switch does to a fixed batch, what is compared at test time, rows of the tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpm_pp
from occreid_jax import config as configuration
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.methods.dpm_pp import METRIC, SELECTION
from occreid_jax.train.state import trainable_paths
from occreid_jax.types import Meta, PrepareContext
from occreid_jax.weights.trees import flatten

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=12)
VARIANTS = [{}, {"clip_reid_heads": True}, {"mask_space": "text"}]  # settings here that decide which parameters there are
FIXED = {"label_smoothing": 0.0, "transfer.probability": 1.0, "transfer.partners": "random"}


def create(argument: str = "backbone=clip_micro", meta: Meta = META, **settings):
    config = dpm_pp.get_config(argument)
    config.method.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    config.data.image_size = meta.image_size
    config.dtype = "float32"
    return methods.create(config, meta)


@functools.cache
def initial_values():
    """Initial values for each of `VARIANTS`, from one program: what they have in common is compiled once."""
    return jax.jit(lambda key: [create(**variant).init(key) for variant in VARIANTS])(jax.random.key(0))


def initial(**settings):
    """Initial values for settings."""
    names = {name for variant in VARIANTS for name in variant}
    return initial_values()[VARIANTS.index({name: value for name, value in settings.items() if name in names})]


def started(**settings):
    """Initial values for settings, with a mask generator and texts that say something."""
    params, extra = initial(**settings)
    generator = params["mask_generator"]
    kernel = jax.random.normal(jax.random.key(1), generator["fc"]["kernel"].shape)
    params = params | {"mask_generator": generator | {"fc": generator["fc"] | {"kernel": kernel}}}
    return params, extra | {"texts": jax.random.normal(jax.random.key(2), extra["texts"].shape)}


def batch(count: int = 12) -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(count, *META.image_size, 3)).astype(np.float32)),
        "camid": jnp.asarray(np.arange(count) % 3, jnp.int32),
        "label": jnp.asarray(np.arange(count) // 2, jnp.int32),
        "index": jnp.arange(count, dtype=jnp.int32),
        "valid": jnp.ones(count, bool),
    }


def stage_of(method, name: str):
    return next(stage for stage in method.stages() if stage.name == name)


def outcome(settings: dict, stage: str = METRIC, t: float = 0.0) -> tuple[float, dict]:
    """(loss, metrics) of the fixed batch under settings."""
    method = create(**(FIXED | settings))
    params, extra = started(**settings)
    total, aux = method.loss(params, extra, batch(), jax.random.key(3), stage_of(method, stage), jnp.float32(t))
    return float(total), {name: float(value) for name, value in aux.metrics.items()}


def gradients(settings: dict, stage: str, *terms: str) -> list[dict]:
    """For every named metric: the largest absolute gradient in each network, on the fixed batch."""
    method = create(**(FIXED | settings))
    params, extra = started(**settings)

    @jax.jit
    def slopes(params, extra, batch):
        def run(params):
            return method.loss(params, extra, batch, jax.random.key(3), stage_of(method, stage), jnp.float32(0))[1].metrics

        metrics, pull = jax.vjp(run, params)
        chosen = {name: jnp.array([name == term for term in terms], jnp.float32) for name in metrics}
        return jax.tree.map(lambda x: jnp.abs(x).max(axis=range(1, x.ndim)), jax.vmap(pull)(chosen)[0])

    largest = {path: np.asarray(value) for path, value in flatten(slopes(params, extra, batch())).items()}
    networks = {"/".join(path.split("/")[: 2 if path.startswith("selection") else 1]) for path in largest}
    strongest = {n: np.max([value for path, value in largest.items() if path.startswith(n)], axis=0) for n in networks}
    return [{name: value[number] for name, value in strongest.items()} for number in range(len(terms))]


# Switches: name -> (changed settings, stage, what the formula predicts of loss and metrics before and after) --------------------


def less_by(name: str, share: float = 1.0):
    """The loss falls by this share of a term."""
    return lambda a, x, b, y: np.isclose(b, a - share * x[name], rtol=1e-5)


SWITCHES = {
    "no masked loss": ({"masked_weight": 0.0}, METRIC, less_by("masked_identity")),
    "half the identity loss": ({"identity_weight": 0.5}, METRIC, less_by("identity", 0.5)),
    "no triplet": ({"triplet_weight": 0.0}, METRIC, less_by("triplet")),
    "no anchors": ({"anchor_weight": 0.0}, METRIC, less_by("anchor")),
    "no head enrichment": ({"head_weight": 0.0}, METRIC, less_by("head_enrich", 0.1)),
    "official reduction": ({"head_reduction": "official"}, METRIC,
                           lambda a, x, b, y: np.isclose(y["head_enrich"], x["head_enrich"] * 12 / 2**2, rtol=1e-5)),
    "no transfer at random": ({"transfer.probability": 0.0}, METRIC,
                              lambda a, x, b, y: x["transferred"] == 1 and y["transferred"] == 0),
    "threshold out of reach": ({"transfer.partners": "best", "transfer.threshold": 1.1}, METRIC,
                               lambda a, x, b, y: y["transferred"] == 0),
    "area out of reach": ({"transfer.least_area": 1.0}, METRIC,
                          lambda a, x, b, y: x["transferred"] == 1 and y["transferred"] == 0),
    "fallback": ({"transfer.partners": "best", "transfer.threshold": 1.1, "transfer.fallback": "first"}, METRIC,
                 lambda a, x, b, y: y["transferred"] == 1),
    "selection: no masked loss": ({"selection.masked_weight": 0.0}, SELECTION, less_by("masked_identity")),
    "selection: no identity": ({"selection.identity_weight": 0.0}, SELECTION, less_by("identity")),
    "selection: no triplet": ({"selection.triplet_weight": 0.0}, SELECTION, less_by("triplet")),
    "selection: no budget": ({"selection.budget_weight": 0.0}, SELECTION, less_by("budget", 50.0)),
    "selection: no overlap": ({"selection.overlap_weight": 0.0}, SELECTION, less_by("overlap", 0.1)),
    "selection: budget met": ({"selection.budget_share": 0.5}, SELECTION, lambda a, x, b, y: np.isclose(
        y["budget"], (np.sqrt(x["budget"]) * np.sign(x["mean_saliency"] - 0.3) - 0.2) ** 2, atol=1e-5)),
}  # fmt: skip


@pytest.fixture(scope="module")
def before():
    return {stage: outcome({}, stage) for stage in (METRIC, SELECTION)}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name, before):
    changes, stage, predicts = SWITCHES[name]
    loss, metrics = outcome(changes, stage)
    assert predicts(*before[stage], loss, metrics), (before[stage], loss, metrics)


@pytest.mark.slow
def test_whom_the_terms_reach():
    masked, heads, plain = gradients({}, METRIC, "masked_identity", "head_enrich", "identity")
    assert masked["mask_generator"] > 0 and masked["prototypes"] > 0 and masked["visual"] > 0
    assert heads["visual"] > 0 and heads["prototypes"] == heads["mask_generator"] == 0
    assert plain["prototypes"] > 0 and plain["mask_generator"] == 0
    for term in (masked, heads, plain):
        assert term["selection/encoder"] == term["selection/decision"] == term["text"] == 0
    (in_text,) = gradients({"mask_space": "text"}, METRIC, "masked_identity")
    assert in_text["mask_generator"] > 0 and in_text["prototypes"] == 0  # it is the texts that are masked


@pytest.mark.parametrize("changes, reaches", [({}, False), ({"selection.detach": False}, True)], ids=["detached", "attached"])
def test_whom_the_terms_of_the_selection_reach(changes, reaches):
    budget, masked = gradients(changes | {"selection.masking": "keep"}, SELECTION, "budget", "masked_identity")
    assert budget["selection/decision"] > 0 and (budget["selection/encoder"] > 0) == reaches
    assert masked["selection/decision"] > 0 and masked["selection/encoder"] > 0  # straight through the threshold


@pytest.mark.parametrize("softmax", [False, True])
def test_heads_are_compared_before_or_after_the_softmax(softmax):
    settings = {"head_softmax": softmax, "transfer.on": False}
    method = create(**settings)
    logits = np.asarray(method.encode(started()[0], batch()).cls_logits, np.float64)
    rows = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) if softmax else logits
    rows = rows / np.sqrt((rows**2).sum(-1, keepdims=True) + 1e-6)
    expected = (((rows @ rows.transpose(0, 2, 1)) - np.eye(2)) ** 2).sum((1, 2)).mean()
    np.testing.assert_allclose(outcome(settings)[1]["head_enrich"], expected, rtol=1e-4)


def test_anchors_end_after_their_epochs():
    settings = {"anchor_epochs": 3}
    epochs = create(**settings).stages()[-1].epochs
    inside, outside = (outcome(settings, t=t)[0] for t in (0.9 * 3 / epochs, 1.1 * 3 / epochs))
    loss, metrics = outcome({})
    np.testing.assert_allclose([inside, outside], [loss, loss - metrics["anchor"]], rtol=1e-5)


def test_without_texts_or_masks():
    method = create("backbone=clip_micro,text=false", mask=False)
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    assert set(params) == {"visual", "neck", "prototypes", "selection"} and set(extra) == {"batch_stats", "prototype_start"}
    assert [stage.name for stage in method.stages()] == [SELECTION, METRIC]

    def loss(params, extra):
        return method.loss(params, extra, batch(), jax.random.key(0), stage_of(method, METRIC), jnp.float32(0))

    _, aux = jax.eval_shape(loss, params, extra)
    assert not {"anchor", "masked_identity"} & set(aux.metrics)


# Stages -------------------------------------------------------------------------------------------------------------------


def test_each_stage_moves_its_own_parameters():
    method = create()
    params, _ = initial()
    prompts, selection, metric = method.stages()
    moved = [{path.split("/")[0] for path in trainable_paths(params, stage.updates[0])} for stage in (prompts, selection, metric)]
    assert moved == [{"prompts"}, {"selection"}, {"visual", "neck", "prototypes", "mask_generator"}]
    assert prompts.inputs == ("feature",)
    assert [(bound.metric, bound.least, bound.most) for bound in selection.bounds] == [("mean_saliency", 0.05, 0.95)]
    for stage in (selection, metric):
        assert not any(path.endswith("neck/bias") for path in trainable_paths(params, stage.updates[0]))


def test_alternating_updates_are_two():
    method = create(alternating=True)
    params, _ = initial()
    others, mask = (trainable_paths(params, update) for update in stage_of(method, METRIC).updates)
    assert {path.split("/")[0] for path in others} == {"visual", "neck", "prototypes"}
    assert {path.split("/")[0] for path in mask} == {"mask_generator"}


def test_preparations():
    """Prompts are learned on features without cameras; anchors are the texts of all identities."""
    method = create()
    params, extra = initial()
    own = batch()

    def run(function):
        return np.asarray(function(params, extra, own))

    context = PrepareContext(params, extra, jax.random.key(1), np.asarray(own["label"]), np.asarray(own["camid"]), run)
    prompts, selection, metric = method.stages()
    features = method.prepare(prompts, 0, context)["tables"]["feature"]
    other_cameras = own | {"camid": (own["camid"] + 1) % 3}
    np.testing.assert_allclose(features, method.projected(params, extra, other_cameras), atol=1e-5)
    assert method.prepare(selection, 0, context) is extra
    texts = method.prepare(metric, 0, context)["texts"]
    np.testing.assert_allclose(texts, method.texts(params, extra, jnp.arange(6)), atol=1e-5)


def test_selection_statistics_take_three_steps():
    method = create()
    params, extra = initial()
    _, aux = method.loss(params, extra, batch(), jax.random.key(3), stage_of(method, SELECTION), jnp.float32(0))
    mean = aux.extra["batch_stats"]["selection"]["neck"]["mean"]
    network, settings = method.selection, {"params": params["selection"]["encoder"]}
    patches = network.encoder.apply(settings, batch()["image"], method="embed_patches")
    whole = network.encode(params["selection"], patches)
    saliency = network.decide(params["selection"], whole.taps)[..., None]
    features = [whole.cls, *(network.encode(params["selection"], patches * share).cls for share in (saliency, 1 - saliency))]
    expected = jnp.zeros_like(mean)
    for feature in features:
        expected = 0.9 * expected + 0.1 * feature.mean(axis=0)
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_masks_reach_another_grid_by_floor():
    """16 x 8 patches on 21 x 10, as torch's nearest does (oracle 2)."""
    large = Meta(identities=4, cameras=2, image_size=(256, 128), images=4)
    method = create("backbone=clip_micro,text=false,stride=12", large, selection__stride=16)
    assert method.selection.encoder.grid == (16, 8) and method.visual.grid == (21, 10)
    rows, columns = np.indices((16, 8))
    for index, expected in (
        (rows, [0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 12, 13, 14, 15]), (columns, [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]),
    ):  # fmt: skip
        for value in range(index.max() + 1):
            mask = method.selection.mask(jnp.asarray((index == value).reshape(1, -1), jnp.float32), (21, 10)).reshape(21, 10)
            line = mask.any(axis=1) if index is rows else mask.any(axis=0)
            np.testing.assert_array_equal(line, np.array(expected) == value)


# Test time ----------------------------------------------------------------------------------------------------------------


def test_gallery_is_seen_through_each_query_s_mask():
    method = create()
    params, extra = started()
    query, gallery = (method.embed(params, extra, batch(), role) for role in ("query", "gallery"))
    assert set(query) == {"feature", "mask"} and set(gallery) == {"feature"}
    distances = method.distance(query, gallery)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    q, m, g = (np.asarray(x, np.float64) for x in (query["feature"], query["mask"], gallery["feature"]))
    expected = 2 - 2 * (unit(q)[:, None] * unit(m[:, None] * unit(g)[None])).sum(-1)
    np.testing.assert_allclose(distances, expected, atol=1e-5)
    assert float(jnp.abs(distances - distances.T).max()) > 1e-4  # not symmetric
    plain = create(test_mask=False).embed(params, extra, batch(), "query")
    np.testing.assert_array_equal(plain, query["feature"])


@pytest.mark.parametrize("side", ["feature", "both"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_features_that_masks_refine_are_refined_in_both_roles(side, order):
    method = create(mask_side=side, mask_order=order)
    params, extra = started()
    query, gallery = (method.embed(params, extra, batch(), role) for role in ("query", "gallery"))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    q, g, mask, own = (np.asarray(x, np.float64) for x in (query["feature"], gallery["feature"], query["mask"], gallery["mask"]))
    expected = np.zeros((12, 12))
    for i in range(12):
        for j in range(12):
            one, other = mask[i] * unit(q[i]), own[j] * unit(g[j])
            other = mask[i] * other if side == "both" else other
            expected[i, j] = 2 - 2 * (unit(one) @ unit(other) if order == "before" else one @ other)
    np.testing.assert_allclose(method.distance(query, gallery), expected, atol=2e-5)


def test_what_else_can_be_compared():
    method = create()
    params, extra = started()
    feature = create(test_feature="before").embed(params, extra, batch(), "gallery")["feature"]
    after = create(test_feature="after").embed(params, extra, batch(), "gallery")["feature"]
    np.testing.assert_allclose(after, method.after_neck(params, extra, feature)[0], atol=1e-5)
    wide = create(test_projected=True).embed(params, extra, batch(), "query")
    assert wide["feature"].shape == (12, 32 + 16) and bool((wide["mask"][:, 32:] == 1).all())
    mask = np.asarray(method.embed(params, extra, batch(), "query")["mask"], np.float64)
    np.testing.assert_allclose(wide["mask"][:, :32], mask / np.sqrt((mask**2).mean(axis=1, keepdims=True)), rtol=1e-5)
    texts = create(mask_space="text")
    query = texts.embed(*started(mask_space="text"), batch(), "query")
    assert query["feature"].shape == (12, 16) and query["mask"].shape == (12, 16)


@pytest.mark.parametrize("settings", [{}, {"mask": False}, {"mask_space": "text"}, {"mask_side": "both"}], ids=str)
def test_comparisons_are_the_settings_of_the_test(settings):
    """Every one of them is what `embed` and `distance` give with the settings that its name says."""
    method, batch_ = create(**settings), batch()
    params, extra = started(**settings)
    beside = [method.embed_compared(params, extra, batch_, role)[1] for role in ("query", "gallery")]
    assert len(method.comparisons) == (1 if "mask" in settings else 2) * (1 if "mask_space" in settings else 2)
    for name in method.comparisons:
        word, space = name.split(", ")
        own = create(**settings, test_mask=word == "masked", test_feature="after" if "after" in space else "before")
        pair = (own.embed(params, extra, batch_, role) for role in ("query", "gallery"))
        np.testing.assert_allclose(method.compare(name, *beside), own.distance(*pair), atol=1e-5)


def test_reranking_asks_for_masks_of_the_gallery():
    method = create()
    method.config.evaluation.rerank = "5,2,0.3"
    assert set(method.embed(*started(), batch(), "gallery")) == {"feature", "mask"}


def test_recombined_tokens_enter_the_encoder():
    """An image that is its own partner, or whose partner has no salient patch outside, gives the features of plain images."""
    method = create()
    params, _ = started()
    own = batch()
    partner = jnp.array([3, *range(1, 12)])
    salient = jnp.zeros((12, 8), bool)
    mixed = method.encode(params, own, None, salient, partner).feature
    plain = method.encode(params, own).feature
    moved = own | {"image": own["image"].at[0].set(own["image"][3])}
    np.testing.assert_allclose(mixed[1:], plain[1:], atol=1e-6)
    np.testing.assert_allclose(mixed[0], method.encode(params, moved).feature[0], atol=1e-5)
    full = method.encode(params, own, None, ~salient, partner).feature
    np.testing.assert_allclose(full, plain, atol=1e-6)


# Configs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", dpm_pp.ROWS)
def test_every_row_of_the_tables_can_be_built(row):
    config = dpm_pp.get_config(f"backbone=clip_micro,row={row}")
    configuration.validate(config)
    method = methods.create(config, META)
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    assert ("selection" in params) == config.method.transfer.on
    assert ("mask_generator" in params) == (config.method.mask and not config.method.unit_mask)
    assert config.stages.metric.augment.erasing == (0.0 if row == "transfer" else 0.5)
    settings = configuration.flatten(configuration.to_dict(config.method))
    changes = {key: list(value) if isinstance(value, tuple) else value for key, value in dpm_pp.ROWS[row].items()}
    assert all(settings[key] == value for key, value in changes.items() if key != "erasing")


def test_rows_that_are_one_training():
    """All other rows differ from each other; the second table of a pair lists its published figures once more."""
    same = {}
    for row in dpm_pp.ROWS:
        config = configuration.to_dict(dpm_pp.get_config(f"backbone=clip_micro,row={row}"))
        same.setdefault(repr(config), []).append(row)
    groups = [["baseline", "erasing"], ["spt_oiou_rolling", "erasing_transfer"], ["full", "visual_prototypes"]]
    groups += [["prototype_before", "masked_1", "head_0.1", "dpm_hmg_hem"], ["dpm_hmg", "head_0"]]
    assert sorted(map(sorted, (rows for rows in same.values() if len(rows) > 1))) == sorted(map(sorted, groups))


def test_recipes_of_the_predecessors():
    dpm = dpm_pp.get_config("dataset=occluded_duke,recipe=dpm")
    assert dpm.method.stride == 11 and dpm.stages.metric.epochs == 150
    assert dpm.method.alternating and "selection" not in dpm.stages
    assert dpm.stages.metric.mask_optimizer.schedule.name == "constant" and dpm.stages.metric.optimizer.name == "sgd"
    reid = dpm_pp.get_config("dataset=occluded_reid,recipe=dpm")
    assert reid.method.head_weight == 0.01 and reid.stages.metric.epochs == 50 and any(reid.stages.metric.augment.jitter)
    spt = dpm_pp.get_config("dataset=occluded_duke,recipe=spt")
    assert spt.method.stride == 16 and not spt.method.camera and not spt.method.mask
    both = dpm_pp.get_config("dataset=occluded_duke,recipe=dpm_spt")
    assert both.method.transfer == spt.method.transfer and both.method.selection.stride == 16
    both.init.weights = "vit"
    stages = methods.create(both, META).stages()
    assert [stage.name for stage in stages] == [SELECTION, METRIC] and len(stages[1].updates) == 2
    method = methods.create(dpm, Meta(702, 8, (256, 128), 100))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    # The sheet's 146,149,868 values without ImageNet's classifier and statistics of the batch normalisations.
    unused, statistics = 769_000, 2 * (1536 + 3 * 768) + 4
    assert sum(x.size for x in jax.tree.leaves(params)) == 146_149_868 - unused - statistics


def test_a_selection_network_can_be_given():
    method = create("backbone=clip_micro,learn_selection=false")
    with pytest.raises(UserError, match="no stage 'selection', and what it would learn comes from nowhere else"):
        method.stages()  # its network would be that of the beginning
    method.config.init.weights = "clip,selection"
    assert method.selection is not None and [stage.name for stage in method.stages()] == ["prompts", METRIC]
    with pytest.raises(UserError, match="no stage 'prompts'"):
        create("backbone=clip_micro,text=false", text=True).stages()


def test_triplets():
    """The selection network is trained by the objectives of the stage that uses it (section 3.4), SPT's own by SPT's."""
    for argument, margin, smoothing in (("", 0.3, 0.1), (",triplet=soft", None, 0.1), (",recipe=spt", None, 0.0)):
        method = dpm_pp.get_config(f"dataset=market1501{argument}").method
        assert (method.margin, method.label_smoothing) == (margin, smoothing)
        assert (method.selection.margin, method.selection.label_smoothing) == (margin, smoothing)
    small = dpm_pp.get_config().method
    assert (small.margin, small.selection.margin, small.selection.label_smoothing) == (0.3, None, 0.0)


def test_published_recipe():
    config = dpm_pp.get_config("dataset=occluded_duke")
    assert config.method.backbone == "clip_vit_b16" and config.method.stride == 12 and config.method.cosine_margin == 0.5
    assert dpm_pp.get_config("dataset=market1501").method.cosine_margin == 0.3
    assert [config.stages[name].epochs for name in ("prompts", "selection", "metric")] == [100, 60, 60]


def test_settings_that_cannot_work():
    for argument, settings, words in (
        ("backbone=micro", {"mask_space": "text"}, "has no text space"),
        ("backbone=clip_micro,text=false", {"mask_space": "text"}, "needs text=true"),
        ("backbone=clip_micro", {"mask_levels": (0,)}, "config.method.mask_levels: levels"),
        ("backbone=clip_micro", {"selection.levels": ()}, "config.method.selection.levels: levels"),
        ("backbone=clip_micro", {"selection.masking": "drop"}, "config.method.selection.masking is 'drop'"),
        ("backbone=clip_micro", {"transfer.partners": "worst"}, "config.method.transfer.partners is 'worst'; it must"),
        ("backbone=clip_micro", {"transfer.ignore_negatives": "all"}, "config.method.transfer.ignore_negatives"),
        ("backbone=clip_micro", {"transfer.hole_of": "both"}, "config.method.transfer.hole_of is 'both'"),
        ("backbone=clip_micro", {"mask_side": "none"}, "config.method.mask_side is 'none'"),
    ):
        with pytest.raises(UserError, match=words):
            create(argument, **settings)
    with pytest.raises(UserError, match="transfer.among=4: batches of 32 pictures cannot .* two whole identities"):
        create(transfer__among=4).stages()
    assert create(transfer__among=8).transfer.shares(32) == 4 and create(transfer__among=4, transfer__on=False).stages()
    for argument, words in (("row=best", "unknown row 'best'"), ("recipe=fed", "unknown recipe 'fed'")):
        with pytest.raises(ValueError, match=words):
            dpm_pp.get_config(argument)
