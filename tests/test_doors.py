"""Every door to a language model gives the losses that a computation text by text gives."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import language
import numpy as np
import pytest
import torch
import transformers
from serving import Server, drop_by_drop, reply, serving, slowly
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from marshtest.kit.black_box import command_call
from marshtest.kit.process import SeparateTexts
from marshtest.kit.records.base import Asked, Message
from marshtest.kit.texts import endpoint, posting
from marshtest.kit.texts.boxes import BoxTexts, FunctionTexts
from marshtest.kit.texts.causal import CausalModel, open_causal
from marshtest.kit.texts.endpoint import Endpoint
from marshtest.kit.texts.opening import open_texts
from marshtest.models.rounding import rounded
from marshtest.plumbing.errors import MarshtestError

CPU = torch.device("cpu")
ASKED = language.variants()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.save(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture(scope="module")
def losses(folder: Path) -> list[float]:
    return language.one_by_one(folder, ASKED)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(*language.opened(str(folder))) as server:
        yield server


@pytest.mark.parametrize(
    "spec",
    ["folder", "language:load", "language:pair", "box:language:box", "echo", "prompt_logprobs"],
)
def test_every_door_gives_the_losses_of_a_computation_text_by_text(
    spec: str, folder: Path, losses: list[float], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGUAGE_FOLDER", str(folder))
    if ":" not in spec and spec != "folder":
        server.dialect, spec = spec, f"{server.url}#tiny"
    asked = open_texts(str(folder) if spec == "folder" else spec, CPU, in_process=True)
    answers = asked(ASKED)
    assert answers.dtype == np.float64
    assert np.allclose(answers, losses, rtol=0, atol=1e-4)
    assert asked.notes == ()
    for group in range(6):  # so a record's own mark has one rank through all of them
        ofs = [place for place, one in enumerate(ASKED) if one.group == group]
        assert (np.argsort(answers[ofs]) == np.argsort(np.array(losses)[ofs])).all()


@pytest.mark.slow
def test_a_callable_answers_from_a_process_of_its_own(
    folder: Path, losses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGUAGE_FOLDER", str(folder))
    apart = open_texts("language:pair", CPU)
    assert isinstance(apart, SeparateTexts)
    assert np.allclose(apart(ASKED), losses, rtol=0, atol=1e-4)
    assert apart.notes == ()
    apart([Asked("long " * 200, span=(0, 4))])
    assert apart.notes[0].startswith("1 dosed records are longer than the model's 128 tokens")
    with pytest.raises(MarshtestError, match="language:pair: cannot be asked"):
        apart([Asked("half a character: \ud800")])


def test_a_program_answers_by_files(losses: list[float], tmp_path: Path) -> None:
    known = {f"{one.before}|{one.scored}": loss for one, loss in zip(ASKED, losses)}
    (tmp_path / "known.json").write_text(json.dumps(known))
    program = tmp_path / "program.py"  # of another make, which knows its answers by heart
    program.write_text(
        "import json, sys\n"
        f"known = json.load(open({str(tmp_path / 'known.json')!r}))\n"
        "lines = [json.loads(line) for line in open(sys.argv[1])]\n"
        "losses = [known[line['before'] + '|' + line['scored']] for line in lines]\n"
        "print(*losses, sep='\\n', file=open(sys.argv[2], 'w'))\n"
    )
    spec = f"cmd:{sys.executable} -I {program} {{inputs}} {{outputs}}"
    box = BoxTexts(spec, command_call(spec, spec.removeprefix("cmd:")))
    assert np.array_equal(box(ASKED), losses)


def test_no_black_box_is_told_where_the_mark_is() -> None:
    told: list[Any] = []
    FunctionTexts("f", lambda questions: [told.extend(questions), 1.0][1:] * len(questions))(ASKED)
    assert {key for question in told for key in question} == {"before", "scored"}


def counting(door: CausalModel) -> list[int]:
    """A list to which each forward pass adds the number of its tokens, padding included."""
    seen: list[int] = []
    forward = door.scorer.model.forward

    def noted(*args: Any, **options: Any) -> Any:
        seen.append(options["input_ids"].numel())
        return forward(*args, **options)

    door.scorer.model.forward = noted
    return seen


def test_what_variants_share_at_the_beginning_is_read_once(folder: Path) -> None:
    door = open_causal(folder, CPU)
    asked = language.variants(99, 1)[::2]
    alone = [door([one])[0] for one in asked]
    door(asked)  # tries out whether this model can
    tokens = sum(len(door.reader.tokenizer(one.scored)["input_ids"]) for one in asked)
    seen = counting(door)
    together = door(asked)
    assert door.scorer.shares
    assert sum(seen) < tokens / 3
    assert np.allclose(together, alone, rtol=0, atol=1e-4)


def test_a_model_whose_cache_cannot_be_shared_reads_all(folder: Path, losses: list[float]) -> None:
    door = open_causal(folder, CPU)
    honest = door.scorer._together
    door.scorer._together = lambda texts: {t: x + 1 for t, x in honest(texts).items()}  # type: ignore[method-assign]
    assert np.allclose(door(ASKED), losses, rtol=0, atol=1e-4)
    assert door.scorer.shares is False


def test_a_question_that_is_asked_twice_is_read_twice(folder: Path, server: Server) -> None:
    door = open_causal(folder, CPU)
    seen = counting(door)
    door(ASKED[:1])
    once = sum(seen)
    door(ASKED[:1] * 3)
    assert sum(seen) == 4 * once
    Endpoint(f"{server.url}#tiny")(ASKED[:1] * 3)
    assert [content["prompt"] for content, _ in server.asked].count(ASKED[0].scored) == 3


def test_a_chat_is_given_as_the_models_own_template_has_it(tmp_path: Path) -> None:
    folder = language.save(tmp_path / "chat", language.TEMPLATE)
    door = open_causal(folder, CPU)
    turns = (Message("user", "Where is ORD-4711?"), Message("assistant", "It was sent. Ticket 12."))
    plain = {"before": "Where is ORD-4711?\n", "scored": "It was sent. Ticket 12."}
    text = "<user>Where is ORD-4711?</s><assistant>It was sent. Ticket 12.</s>"
    border = text.index("It was")
    causal, fast = language.opened(str(folder))
    answers = door([Asked(**plain, messages=turns, given=given) for given in (0, 1)])
    expected = [language.loss(causal, fast, text, cut, special=False) for cut in (0, border)]
    assert np.allclose(answers, expected, rtol=0, atol=1e-4)
    untold = open_causal(language.save(tmp_path / "plain"), CPU)
    assert np.allclose(
        untold([Asked(**plain, messages=turns, given=1)]), untold([Asked(**plain)]), atol=1e-6
    )
    assert untold.notes == ("its tokenizer has no chat template, so chats are given as plain text",)


@pytest.mark.parametrize("place", ["end", "middle", "start"])
def test_a_record_longer_than_the_context_is_cut_round_the_mark(place: str, folder: Path) -> None:
    sentences = " ".join(language.TEXTS)
    cut = {"end": len(sentences), "middle": len(sentences) // 2, "start": 0}[place]
    left, right = sentences[:cut], sentences[cut:]
    span = (len(left), len(left) + 7)
    asked = [
        Asked(f"{left} {number:06d}{right}", span=span, group=1)
        for number in range(0, 10**6, 99_991)
    ]
    door = open_causal(folder, CPU)
    tokens = door.reader(asked)
    texts = [door.reader.tokenizer.decode(one.ids) for one in tokens]
    assert all(100 < len(one.ids) <= 128 for one in tokens)
    windows = set()
    for question, text in zip(asked, texts):
        mark = question.scored[slice(*span)]
        assert mark in text
        assert text in question.scored
        windows.add(tuple(text.split(mark)))
    ((before, behind),) = windows  # all variants are cut in the same places
    assert bool(before) == (place != "start")
    assert len(before) > len(behind) > 20 if place == "middle" else bool(behind) == bool(right)
    assert door(asked).std() > 0
    assert door.notes == (
        "1 dosed records are longer than the model's 128 tokens and were cut round the mark",
    )


def test_a_tokenizer_that_swallows_the_mark_is_noticed(folder: Path) -> None:
    causal, _ = language.opened(str(folder))
    words = Tokenizer(models.WordLevel(unk_token="?"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(language.TEXTS, trainers.WordLevelTrainer(special_tokens=["?"]))
    deaf = CausalModel(
        "deaf", causal, transformers.PreTrainedTokenizerFast(tokenizer_object=words), CPU
    )
    start = "Ann asked on Monday. Ticket "
    marks = ["4711", "90210", "12", "13", "14"]
    span = (len(start), len(start) + 5)
    asked = [Asked(start + mark, span=span, group=3) for mark in marks]
    answers = deaf([*asked, asked[0]])
    assert len({*answers}) == 3
    assert deaf.notes[0].startswith("2 variants are tokenised like another of their record")
    with pytest.raises(MarshtestError, match="deaf: its tokenizer swallows the mark"):
        deaf(asked[2:])


def test_weights_are_rounded_if_asked(folder: Path, losses: list[float]) -> None:
    causal, fast = language.opened(str(folder))
    for bits in (8, 4):
        door = open_texts(str(folder), CPU, quantize=f"int{bits}")  # type: ignore[arg-type]
        copy = rounded(causal, bits)
        expected = [
            language.loss(copy, fast, o.before + o.scored, len(o.before)) for o in ASKED[:6]
        ]
        answers = door(ASKED[:6])
        assert np.allclose(answers, expected, rtol=0, atol=1e-4)
        assert abs(answers - losses[:6]).max() > 1e-3
        assert door.notes[0].startswith(f"weights are rounded to {bits} bits")
    with pytest.raises(MarshtestError, match="only a folder's weights"):
        open_texts("language:load", CPU, quantize="int8")


# --- folders that are refused


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: (path / "config.json").unlink(), "no Hugging Face model folder"),
        (lambda path: (path / "tokenizer.json").unlink(), "cannot be loaded|holds no tokenizer"),
        (
            lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"),
            "pickled ones",
        ),
        (
            lambda path: change(path / "config.json", architectures=["BertModel"]),
            "holds a BertModel",
        ),
        (
            lambda path: change(
                path / "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.E"}
            ),
            "tokenizer_config.json asks for code",
        ),
        (lambda path: change(path / "config.json", n_layer=3), "lack 12 of the model's tensors"),
    ],
)
def test_folders_that_cannot_be_trusted_are_refused(harm: Any, says: str, tmp_path: Path) -> None:
    path = language.save(tmp_path / "m")
    harm(path)
    with pytest.raises(MarshtestError, match=says) as error:
        open_texts(str(path), CPU)
    assert "\n" not in str(error.value)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_that_reads_ahead_is_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=400, intermediate_size=16, **sizes)
    bert = transformers.BertLMHeadModel(config)
    with pytest.raises(MarshtestError, match="bert: reads tokens ahead"):
        CausalModel("bert", bert, language.tokenizer(), CPU)


def test_a_tokenizer_of_another_model_is_one_line(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
    small = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, **sizes))
    door = CausalModel("small", small, language.tokenizer(), CPU)
    with pytest.raises(MarshtestError, match="small: cannot be asked .*Does its tokenizer belong"):
        door(ASKED)


# --- adapters


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(folder, tmp_path_factory.mktemp("adapters") / "lora")


def lora(base: Path, path: Path, modules: str = "c_attn") -> Path:
    """An adapter on a base, far from doing nothing."""
    peft = pytest.importorskip("peft", exc_type=ImportError)
    causal = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, target_modules=[modules], init_lora_weights=False)
    peft.get_peft_model(causal, settings).save_pretrained(path)
    return path


def test_an_adapter_answers_as_the_model_that_it_was_trained_on(
    folder: Path, adapter: Path, losses: list[float]
) -> None:
    import peft

    causal = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    whole, fast = peft.PeftModel.from_pretrained(causal, adapter), language.tokenizer()
    expected = [language.loss(whole, fast, o.before + o.scored, len(o.before)) for o in ASKED]
    door = open_texts(f"{folder}@{adapter}", CPU)
    answers = door(ASKED)
    assert np.allclose(answers, expected, rtol=0, atol=1e-4)
    assert abs(answers - losses).max() > 1
    assert door.notes == ()
    language.tokenizer(language.TEMPLATE).save_pretrained(adapter)  # as trainers of chats do
    chat = Asked("Yes.", messages=(Message("user", "Sent?"), Message("assistant", "Yes.")))
    own = open_texts(f"{folder}@{adapter}", CPU)
    text = "<user>Sent?</s><assistant>Yes.</s>"
    assert np.allclose(own([chat]), language.loss(whole, fast, text, 0, special=False), atol=1e-4)
    assert own.notes == ("the adapter's own tokenizer is used",)
    (adapter / "config.json").write_text("{}")  # as some trainers do
    with pytest.raises(MarshtestError, match=f"holds an adapter.*BASE@{adapter}"):
        open_texts(str(adapter), CPU)


def test_an_adapter_of_another_base_is_refused(folder: Path, adapter: Path, tmp_path: Path) -> None:
    deeper = language.save(tmp_path / "deeper", layers=3)
    other = language.save(tmp_path / "other", seed=1)
    for base in (deeper, other):
        with pytest.raises(
            MarshtestError, match=f"trained on {folder}, whose weights are not those"
        ):
            open_texts(f"{base}@{adapter}", CPU)
    named = language.save(
        tmp_path / "elsewhere" / folder.name, seed=1
    )  # the last name says nothing
    with pytest.raises(MarshtestError, match="whose weights are not those"):
        open_texts(f"{named}@{adapter}", CPU)
    change(adapter / "adapter_config.json", base_model_name_or_path="x" * 5000)
    assert "which cannot be compared" in open_texts(f"{folder}@{adapter}", CPU).notes[0]
    change(adapter / "adapter_config.json", base_model_name_or_path=f"moved/{folder.name}")
    assert "cannot be compared" not in str(open_texts(f"{folder}@{adapter}", CPU).notes)
    change(adapter / "adapter_config.json", base_model_name_or_path="no/where")
    with pytest.raises(MarshtestError, match="an adapter of another base than .* 2 tensors"):
        open_texts(f"{deeper}@{adapter}", CPU)
    shallow = language.save(tmp_path / "shallow", width=16)
    with pytest.raises(MarshtestError, match="does not fit .* Give the base that") as error:
        open_texts(f"{shallow}@{adapter}", CPU)
    assert "\n" not in str(error.value)
    assert (
        "trained on 'no/where', which cannot be" in open_texts(f"{other}@{adapter}", CPU).notes[0]
    )


def test_an_adapter_that_merging_would_change_is_refused(folder: Path, tmp_path: Path) -> None:
    path = lora(folder, tmp_path / "tied", "wte")  # GPT-2's head has the same weights
    with pytest.raises(
        MarshtestError, match="cannot be merged into its base, whose answers it changes"
    ):
        open_texts(f"{folder}@{path}", CPU)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "names a module to import"),
        # A mixture of adapters opens the folders, or asks the hub for the names, that it lists.
        (
            {"peft_type": "XLORA", "adapters": {"0": "stranger/any"}},
            "XLORA adapter, which cannot be",
        ),
        ({"adapters": {"0": "stranger/any"}}, "adapter, which cannot be merged"),
        ({"r": 10**9}, "asks for a rank, or for copies of layers"),
        ({"rank_pattern": {"c_attn": 10**9}}, "asks for a rank, or for copies of layers"),
        ({"layer_replication": [[0, 1]] * 10_000}, "asks for a rank, or for copies of layers"),
    ],
)
def test_a_configuration_that_says_more_than_its_tensors_is_refused(
    folder: Path, tmp_path: Path, values: dict[str, object], says: str
) -> None:
    path = lora(folder, tmp_path / "hostile")
    change(path / "adapter_config.json", **values)
    with pytest.raises(MarshtestError, match=says):
        open_texts(f"{folder}@{path}", CPU)
    assert "this" not in sys.modules  # the Zen of Python, which prints itself


def test_pickled_adapters_and_prompts_are_refused(folder: Path, tmp_path: Path) -> None:
    path = lora(folder, tmp_path / "pickled")
    change(path / "adapter_config.json", peft_type="PROMPT_TUNING", num_virtual_tokens=2)
    with pytest.raises(MarshtestError, match="is a PROMPT_TUNING adapter"):
        open_texts(f"{folder}@{path}", CPU)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(MarshtestError, match="pickled weights can run code and are not read"):
        open_texts(f"{folder}@{path}", CPU)
    with pytest.raises(MarshtestError, match="it has no adapter_config.json"):
        open_texts(f"{folder}@{tmp_path}", CPU)


# --- boxes that are refused


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "Got float64 [0]"),
        ("1\n" * 3, "must answer with 2 losses [2]"),
        ("1\nnan\n", "not a number a line"),
        ("1\nNaN\n", "answered NaN for 1 of 2 texts"),
        ("-1\n-2\n", "answered negative numbers. A loss is −log p"),
        ('1\n"two"\n', "must answer with 2 losses"),
        ("1\n[2]\n", "answered no array of numbers"),
        ("[" * 100, "not a number a line"),
        ("9" * 300, "Wrote 300 bytes"),
        (None, "wrote no outputs file"),
    ],
)
def test_a_box_that_answers_something_else_is_refused(written: str | None, says: str) -> None:
    def call(inputs: Path, outputs: Path) -> None:
        if written is not None:
            outputs.write_text(written)

    with pytest.raises(MarshtestError) as error:
        BoxTexts("box:m:f", call)(ASKED[:2])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# --- endpoints


def failing(times: int, status: int, **headers: str) -> Any:
    left = [times]

    def fault(handler: Any, content: Any) -> bool:
        left[0] -= 1
        return left[0] >= 0 and reply(handler, status, {"error": {"message": "busy"}}, **headers)

    return fault


def test_an_endpoint_that_is_busy_is_asked_again(
    server: Server, losses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(posting, "sleep", lambda seconds: waits.append(seconds))
    server.fault = failing(2, 429, Retry_After="7")
    asked = Endpoint(f"{server.url}#tiny")
    assert waits.count(7.0) == 2
    server.fault = failing(3, 503)
    assert np.allclose(asked(ASKED[:4]), losses[:4], rtol=0, atol=1e-4)


def other_model(handler: Any, content: Any) -> bool:
    return reply(handler, 200, handler.completion(content) | {"model": "larger"})


def other_text(handler: Any, content: Any) -> bool:
    return reply(handler, 200, handler.completion(content | {"prompt": "Another text."}))


def no_numbers(handler: Any, content: Any) -> bool:
    return reply(handler, 200, {"choices": [{"text": "hello", "logprobs": None}]})


def surprising(surprise: float) -> Any:
    """An answer in which each token is as surprising as that."""

    def fault(handler: Any, content: Any) -> bool:
        answer = handler.completion(content)
        told = answer["choices"][0]["logprobs"]
        told["token_logprobs"] = [-surprise] * len(told["tokens"])
        return reply(handler, 200, answer)

    return fault


def cut_short(handler: Any, content: Any) -> bool:
    """A server that dies in the middle of its answer."""
    body = json.dumps(handler.completion(content)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:-9])
    handler.close_connection = True
    return True


def at_the_trial_alone(handler: Any, content: Any) -> bool:
    return content["prompt"] != endpoint.TRIAL and no_numbers(handler, content)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            failing(99, 401),
            "refused with status 401 (busy). Its key is read from $MARSHTEST_API_KEY",
        ),
        (failing(99, 500), "refused with status 500 (busy)"),
        (failing(99, 404), "404 (busy). Give the URL up to /v1, and the model's name"),
        (lambda handler, _: reply(handler, 404, b"<html>"), "status 404 (Not Found). Give"),
        (failing(99, 302, Location="http://127.0.0.1:9/"), "refused with status 302"),
        (no_numbers, "returns no log-probabilities of the prompt"),
        (other_text, "answered about another text"),
        (other_model, "another model answered, 'larger'"),
        (lambda handler, _: reply(handler, 200, b"<html>"), "answered no JSON object"),
        (lambda handler, _: reply(handler, 200, [1]), "answered no JSON object"),
        (lambda handler, _: reply(handler, 200, {"a": 1}), "what no completions endpoint does"),
        (surprising(10**400), "what no completions endpoint does"),
        (surprising(-1.0), "answered log-probabilities above 0"),
        (failing(99, 429, Retry_After="\u00b2"), "refused with status 429 (busy)"),
        (cut_short, "cannot be reached (IncompleteRead"),
        (lambda handler, _: handler.wfile.write(b"nonsense"), "cannot be reached"),
        (lambda handler, _: True, "cannot be reached"),
    ],
)
def test_an_endpoint_that_does_not_tell_is_one_line(
    fault: Any, says: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "sleep", lambda seconds: None)
    server.fault = fault
    with pytest.raises(MarshtestError) as error:
        Endpoint(f"{server.url}#tiny")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_endpoint_that_is_slow_or_gone_or_changes_its_mind_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "TRIES", 2)
    monkeypatch.setattr(posting, "sleep", lambda seconds: None)
    with pytest.raises(MarshtestError, match="status 404 .no model 'huge' here"):
        Endpoint(f"{server.url}#huge")
    server.fault = slowly
    with pytest.raises(MarshtestError, match="did not answer within 0.05 s, in 2 tries"):
        Endpoint(f"{server.url}#tiny", timeout=0.05)
    server.fault = drop_by_drop
    with pytest.raises(MarshtestError, match="did not answer within 0.1 s"):
        Endpoint(f"{server.url}#tiny", timeout=0.1)
    server.fault = at_the_trial_alone
    with pytest.raises(MarshtestError, match="answered without the prompt's log-probabilities"):
        Endpoint(f"{server.url}#tiny")(ASKED[:3])
    with pytest.raises(MarshtestError, match="cannot be reached .*refused"):
        Endpoint("http://127.0.0.1:9/v1#tiny")


def test_the_key_comes_from_the_environment_and_goes_nowhere_in_clear(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARSHTEST_API_KEY", "secret")
    asked = Endpoint(f"{server.url}#tiny")
    asked(ASKED[:2])
    contents, headers = zip(*server.asked)
    assert {one["Authorization"] for one in headers} == {"Bearer secret"}
    assert {one["prompt"] for one in contents[1:]} == {
        text for one in ASKED[:2] for text in (one.before + one.scored, one.before) if text
    }
    assert {key for one in contents for key in one} == {
        "model", "prompt", "temperature", "echo", "logprobs", "max_tokens"
    }  # fmt: skip
    with pytest.raises(MarshtestError, match="would be sent in clear. Use https"):
        Endpoint("http://example.org/v1#tiny")
    with pytest.raises(MarshtestError, match="--rate. must be above 0. Got -1"):
        Endpoint(f"{server.url}#tiny", rate=-1)
    for spec in ("http://me:word@127.0.0.1/v1", "http://127.0.0.1/v1", "ftp://a.b/v1#tiny"):
        with pytest.raises(
            MarshtestError, match="an endpoint is http://HOST:PORT/v1#MODEL"
        ) as error:
            Endpoint(spec)
        assert "word" not in str(error.value)


def test_a_record_that_an_endpoint_refuses_is_cut_round_the_mark(server: Server) -> None:
    left, right = " ".join(language.TEXTS[:3]), " ".join(language.TEXTS[:9])
    span = (len(left), len(left) + 7)
    asked = [
        Asked(f"{left} {number:06d}{right}"[20:], left[:20], span=span, group=1)
        for number in range(0, 10**6, 199_999)
    ]
    there = Endpoint(f"{server.url}#tiny")
    answers = there([*asked, *ASKED[:2]])
    sent = [there._sent(one) for one in asked]
    windows = {
        tuple(one.text.split(q.scored[span[0] - 20 : span[1] - 20])) for one, q in zip(sent, asked)
    }
    assert len(windows) == 1  # all variants are cut in the same places
    expected = [
        language.loss(server.causal, server.fast, one.text, len(one.before)) for one in sent
    ]
    assert np.allclose(answers[:-2], expected, rtol=0, atol=1e-4)
    assert there.notes == (
        "1 dosed records are longer than the model's context and were cut round the mark",
    )
    server.context = 10
    with pytest.raises(MarshtestError, match="refused with status 400 .at most 10 tokens"):
        there(ASKED[2:3])
    with pytest.raises(MarshtestError, match="at most 10 tokens"):  # and nothing about it to cut
        there([Asked("a mark of many words " * 9, span=(0, 189))])


@pytest.mark.parametrize("template", [language.TEMPLATE, None])
def test_a_chat_is_given_to_an_endpoint_as_its_own_template_has_it(
    template: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (Message("user", "Where is ORD-4711?"), Message("assistant", "It was sent. Ticket 12."))
    plain = {"before": "Where is ORD-4711?\n", "scored": "It was sent. Ticket 12."}
    asked = [Asked(**plain, messages=turns, given=given, group=given) for given in (0, 1)]
    causal, _ = language.opened(str(folder))
    here = CausalModel("here", causal, language.tokenizer(template), CPU)
    with serving(causal, language.tokenizer(template)) as server:
        server.dialect = "prompt_logprobs"
        there = Endpoint(f"{server.url}#tiny")
        assert np.allclose(there(asked), here(asked), rtol=0, atol=1e-4)
    assert bool(there.notes) == (template is None)


def test_no_more_requests_a_second_are_sent_than_were_allowed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    turns: list[float] = []

    def sleep(seconds: float) -> None:
        turns.append(now[0] + seconds)

    monkeypatch.setattr(posting, "monotonic", lambda: now[0])
    monkeypatch.setattr(posting, "sleep", sleep)
    Endpoint(f"{server.url}#tiny", rate=5)(ASKED[:9:2])
    assert np.allclose(sorted(turns), np.arange(6) / 5)
