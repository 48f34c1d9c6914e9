"""The registry and what fetches: wrong bytes, no network, hostile archives. Oracles: hashlib, the manifest."""

import functools
import hashlib
import http.server
import io
import os
import re
import runpy
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from clif_kit import download, registry
from clif_kit.download import Unreachable, UnsafeArchive, extract, fetch, paths, provenance
from clif_kit.registry import ROOT, Corrupt, DataSet, File, Missing

SHARED = ROOT / ".." / "shared" / "data"
OURS = {"scifi_synopses/notes_stories.tar.gz", "word_lists/weat_clif.json"}  # extracts of ours, no public files


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIF_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CLIF_DATA_MIRROR", raising=False)


@pytest.fixture
def toy(monkeypatch):
    """Puts a made-up set into the registry: ``toy(content, **fields)``, the content that is expected by path."""

    def put(content: dict[str, bytes], url: str = "http://127.0.0.1:9/{}", **fields) -> DataSet:
        rows = tuple(
            File(path=p, digest="sha256:" + sha(c), bytes=len(c), url=url.format(p) if url else None)
            for p, c in content.items()
        )
        words = dict.fromkeys(("title", "about", "page", "licence", "citation", "redistribute", "quote"), "toy")
        data = DataSet(**{"name": "toy", "tier": "real", "chapters": ("x",), "files": rows} | words | fields)
        monkeypatch.setattr(registry, "registry", lambda: {"toy": data})
        return data

    return put


@pytest.fixture
def server(tmp_path):
    """A web server on 127.0.0.1: (its address, its folder)."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}", folder
        web.shutdown()


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text
    return text


def cached(tmp_path) -> list[str]:
    cache = tmp_path / "cache"
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file())


# ---- fetching


def test_fetch_downloads_checks_and_does_not_ask_twice(toy, server, tmp_path):
    address, folder = server
    (folder / "a").mkdir()
    (folder / "a" / "one.txt").write_bytes(b"one")
    toy({"a/one.txt": b"one"}, url=address + "/{}")
    (got,) = fetch("toy")
    assert got.read_bytes() == b"one"
    (folder / "a" / "one.txt").unlink()
    assert fetch("toy") == [got]
    assert cached(tmp_path) == ["toy/a/one.txt"]


def test_a_download_with_a_wrong_hash_is_named_in_one_line_and_not_kept(toy, server, tmp_path):
    address, folder = server
    (folder / "f").write_bytes(b"changed")
    toy({"f": b"right"}, url=address + "/{}")
    with pytest.raises(Corrupt) as error:
        fetch("toy")
    text = one_line(error)
    for part in (f"{address}/f", sha(b"right"), sha(b"changed"), "clif data fetch toy"):
        assert part in text
    assert cached(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"righ", b"right."], ids=["empty", "cut", "longer"])
def test_a_damaged_cached_file_is_found_by_verify_and_by_reading_and_mended_by_fetch(toy, server, content):
    address, folder = server
    (folder / "f").write_bytes(b"right")
    toy({"f": b"right"}, url=address + "/{}")
    (path,) = fetch("toy")
    assert [r["state"] for r in registry.verify("toy")] == ["ok"]
    path.write_bytes(content)
    (row,) = registry.verify("toy")
    assert (row["name"], row["file"], row["state"]) == ("toy", "f", "corrupt")
    with pytest.raises(Corrupt) as error:
        paths("toy")
    assert one_line(error) == row["message"]
    assert sha(content) in row["message"]
    fetch("toy")
    assert paths("toy")["f"].read_bytes() == b"right"


def test_a_missing_set_names_itself_its_size_and_the_command(toy):
    toy({"f": b"x" * 1_234_567}, title="The toy set")
    with pytest.raises(Missing) as error:
        paths("toy")
    text = one_line(error)
    assert "'toy' (The toy set, 1.2 MB)" in text
    assert "`clif data fetch toy`" in text
    assert isinstance(error.value, FileNotFoundError)
    assert [r["state"] for r in registry.verify("toy")] == ["missing"]


def test_a_set_that_only_a_person_can_fetch_says_so(toy, tmp_path):
    toy({"f": b"x"}, url="", manual="log in and download f", page="https://example.org/toy")
    for get in (fetch, paths):
        with pytest.raises(Missing) as error:
            get("toy")
        assert "go to https://example.org/toy, log in and download f and save it as" in one_line(error)
    (tmp_path / "cache" / "toy").mkdir(parents=True)
    (tmp_path / "cache" / "toy" / "f").write_bytes(b"x")
    assert fetch("toy") == [tmp_path / "cache" / "toy" / "f"]


def test_without_a_connection_one_line_names_the_address_and_the_mirror_variable(toy, tmp_path):
    toy({"f": b"right"}, url="http://127.0.0.1:9/{}")  # port 9: nobody listens
    with pytest.raises(Unreachable) as error:
        fetch("toy")
    text = one_line(error)
    assert "http://127.0.0.1:9/f" in text
    assert "CLIF_DATA_MIRROR" in text
    assert cached(tmp_path) == []


def test_an_address_that_is_gone_is_one_line_too(toy, server):
    address, _ = server
    toy({"f": b"right"}, url=address + "/{}")
    with pytest.raises(Unreachable, match="status 404"):
        fetch("toy")


def test_sets_that_a_person_must_fetch_do_not_keep_the_others_of_the_tier_from_coming(monkeypatch):
    asked = []
    monkeypatch.setattr(download, "_get", lambda data, *_: asked.append(bool(data.manual)))
    with pytest.raises(Missing):
        fetch("paper")
    assert asked == sorted(asked)
    assert len(asked) == 6


# ---- mirrors


@pytest.mark.parametrize("kind", ["folder", "relative folder", "address"])
def test_a_mirror_is_looked_in_first(toy, server, monkeypatch, kind):
    address, folder = server
    (folder / "toy").mkdir()
    (folder / "toy" / "f").write_bytes(b"right")
    relative = os.path.relpath(folder, ROOT)
    monkeypatch.setenv("CLIF_DATA_MIRROR", {"folder": str(folder), "address": address + "/"}.get(kind, relative))
    (folder / "f").write_bytes(b"the origin's, which is wrong")
    toy({"f": b"right"}, url=address + "/{}")
    if kind == "address":
        with pytest.raises(Missing):  # reading never uses the network
            paths("toy")
        fetch("toy")
    assert paths("toy")["f"].read_bytes() == b"right"


def test_a_mirror_that_lacks_the_file_is_passed_over(toy, server, monkeypatch, tmp_path):
    address, folder = server
    (folder / "f").write_bytes(b"right")
    toy({"f": b"right"}, url=address + "/{}")
    for mirror in (str(tmp_path / "no such folder"), str(folder), address + "/nothing"):
        monkeypatch.setenv("CLIF_DATA_MIRROR", mirror)
        (path,) = fetch("toy")
        assert path.read_bytes() == b"right"
        path.unlink()


def test_a_mirror_with_a_wrong_file_is_named(toy, monkeypatch, tmp_path):
    (tmp_path / "m" / "toy").mkdir(parents=True)
    (tmp_path / "m" / "toy" / "f").write_bytes(b"wrong")
    monkeypatch.setenv("CLIF_DATA_MIRROR", str(tmp_path / "m"))
    toy({"f": b"right"})
    for get in (fetch, paths):
        with pytest.raises(Corrupt) as error:
            get("toy")
        assert str(tmp_path / "m" / "toy" / "f") in one_line(error)
        assert cached(tmp_path) == []


# ---- archives


def tar_of(path: Path, members: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in special:
            tar.addfile(info)
    return path


def zip_of(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "../outside")
    return path


def tar_special(kind: bytes, name: str = "inner") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "../outside"
    return info


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/clif-evil", "..\\evil", "C:\\evil", "C:/evil", ".."])
@pytest.mark.parametrize("make", [tar_of, zip_of], ids=["tar", "zip"])
def test_an_archive_that_leaves_its_folder_writes_nothing(tmp_path, make, name):
    archive = make(tmp_path / "x", {"good": b"fine", name: b"bad"})
    with pytest.raises(UnsafeArchive) as error:
        extract(archive, tmp_path / "deep" / "out")
    assert "not a plain file inside its folder" in one_line(error)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]
    assert not Path("/tmp/clif-evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    archive = tar_of(tmp_path / "x.tar.gz", {"good": b"fine"}, tar_special(kind))
    with pytest.raises(UnsafeArchive, match="'inner' is not a plain file"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    with pytest.raises(UnsafeArchive, match="'inner' is not a plain file"):
        extract(zip_of(tmp_path / "x.zip", {"good": b"fine"}, link="inner"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [tar_of, zip_of], ids=["tar", "zip"])
def test_a_folder_that_is_a_link_to_elsewhere_is_not_followed(tmp_path, make):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "d").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeArchive):
        extract(make(tmp_path / "x", {"d/f": b"bad"}), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("make", [tar_of, zip_of], ids=["tar", "zip"])
def test_a_harmless_archive_comes_out_and_one_too_large_does_not(tmp_path, make, monkeypatch):
    archive = make(tmp_path / "x", {"a/b": b"1", "c": b"2", "skip/../../this": b"3"})
    assert extract(archive, tmp_path / "out", keep=lambda name: not name.startswith("skip")) == ["a/b", "c"]
    assert (tmp_path / "out" / "a" / "b").read_bytes() == b"1"
    monkeypatch.setattr(download, "MAX_UNPACKED", 1)
    with pytest.raises(UnsafeArchive, match="more than 1 bytes"):
        extract(make(tmp_path / "y", {"a": b"12"}), tmp_path / "out2")


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\x03\x04", b"\x1f\x8b\x08\x00"])
def test_what_is_no_archive_is_one_line(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UnsafeArchive) as error:
        extract(tmp_path / "x", tmp_path / "out")
    one_line(error)


@pytest.mark.parametrize("from_mirror", [True, False])
def test_a_set_from_an_archive_checks_each_file_and_keeps_only_those(toy, server, tmp_path, monkeypatch, from_mirror):
    address, folder = server
    archive = {"url": f"{address}/repo.tar.gz", "prefix": "repo-1/", "mirror": "small.tar.gz", "bytes": 3}
    toy({"notes/a": b"one"}, url="", archive=archive)
    if from_mirror:
        (folder / "toy").mkdir()
        tar_of(folder / "toy" / "small.tar.gz", {"notes/a": b"one"})
        monkeypatch.setenv("CLIF_DATA_MIRROR", str(folder))
    else:
        tar_of(folder / "repo.tar.gz", {"repo-1/notes/a": b"one", "repo-1/other": b"2"}, tar_special(tarfile.SYMTYPE))
        fetch("toy")
    assert paths("toy")["notes/a"].read_bytes() == b"one"
    assert cached(tmp_path) == ["toy/notes/a"]


def test_a_wrong_file_in_an_archive_is_named_and_nothing_is_kept(toy, server, tmp_path):
    address, folder = server
    tar_of(folder / "repo.tar.gz", {"repo-1/a": b"one", "repo-1/b": b"changed"})
    archive = {"url": f"{address}/repo.tar.gz", "prefix": "repo-1/", "mirror": "small.tar.gz", "bytes": 3}
    toy({"a": b"one", "b": b"two"}, url="", archive=archive)
    with pytest.raises(Corrupt, match="member repo-1/b: sha256 is " + sha(b"changed")):
        fetch("toy")
    assert cached(tmp_path) == []


# ---- provenance


def test_provenance_follows_the_published_hashes(toy, tmp_path):
    toy({"f": b"x"})
    assert provenance("toy") == {"tier": "real", "sha256": sha(b"x")}
    toy({"b": b"2", "a": b"1"})
    lines = f"{sha(b'1')}  a\n{sha(b'2')}  b\n".encode()
    assert provenance("toy") == {"tier": "real", "sha256": sha(lines)}
    (tmp_path / "mine.csv").write_bytes(b"text,label\n")
    assert provenance(tmp_path / "mine.csv") == {"tier": "own", "sha256": sha(b"text,label\n")}
    with pytest.raises(KeyError, match="there are: toy"):
        provenance("tyo")


def test_provenance_of_a_set_without_published_hash_is_that_of_the_copy(toy, tmp_path):
    toy({}, tier="paper", files=(File(path="f", digest=None, url="http://127.0.0.1:9/f"),))
    with pytest.raises(Missing):
        provenance("toy")
    (tmp_path / "cache" / "toy").mkdir(parents=True)
    (tmp_path / "cache" / "toy" / "f").write_bytes(b"x")
    assert provenance("toy") == {"tier": "paper", "sha256": sha(b"x")}


# ---- the registry itself


def manifest() -> dict[str, tuple[int, str]]:
    text = (SHARED / "MANIFEST.md").read_text("utf-8")
    rows = re.findall(r"^\| (\S+/\S+) \| (\d+) \| ([0-9a-f]{64}) \|$", text, re.MULTILINE)
    return {name: (int(size), digest) for name, size, digest in rows}


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data, the development mirror, is not here")


@needs_shared
def test_every_row_of_the_manifest_is_in_the_registry():
    ours = {
        f"{d.name}/{f.path}": (f.bytes, f.digest.removeprefix("sha256:"))
        for d in registry.registry().values()
        if d.tier == "real"
        for f in d.files
        if f.url
    }
    expected = {name: row for name, row in manifest().items() if name not in OURS}
    assert len(expected) == 46
    assert ours == expected


@needs_shared
def test_the_mirror_holds_every_real_set(monkeypatch):
    monkeypatch.setenv("CLIF_DATA_MIRROR", str(SHARED))
    got = fetch("all")
    assert len(got) == 46 + 75
    assert {row["state"] for row in registry.verify("real")} == {"ok"}
    assert all(row["present"] for row in registry.list_sets() if row["tier"] == "real")


def test_embedded_sets_are_here_and_right():
    assert {row["state"] for row in registry.verify("embedded")} == {"ok"}
    assert provenance("minilm")["tier"] == "embedded"
    weights = next(f for f in registry.find("minilm").files if f.path.endswith(".safetensors"))
    assert weights.digest == "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_addresses_are_pinned_and_every_set_says_what_may_be_done_with_it():
    for data in registry.registry().values():
        assert data.tier in registry.TIERS
        assert all((data.licence, data.citation, data.redistribute, data.quote, data.about, data.chapters)), data.name
        urls = [f.url for f in data.files if f.url] + ([data.archive["url"]] if data.archive else [])
        assert bool(urls) != bool(data.package or data.manual), data.name
        for url in urls:
            assert url.startswith("https://"), url
            if "github" in url:
                assert re.search(r"/[0-9a-f]{40}[/.]", url), url
        for file in data.files:
            digest = file.digest or ""
            assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", digest) or (
                data.tier == "paper" and not digest
            )


def test_rows_of_list_sets_are_what_the_command_line_prints():
    rows = {row["name"]: row for row in registry.list_sets()}
    assert rows["digits"]["present"] is True
    assert rows["mnist_t10k"]["present"] is False  # the cache of this test is empty
    assert rows["mnist_t10k"]["size"] == "1.7 MB"
    assert rows["wnc"]["size"] == "size unknown"
    assert set(rows["sick"]) == {"name", "title", "tier", "bytes", "size", "present", "licence", "chapters"}


def test_the_data_page_is_in_step_with_the_registry():
    page = runpy.run_path(str(ROOT / "data_scripts" / "page.py"))["page"]()
    assert (ROOT / "book" / "data.md").read_text("utf-8") == page
    for data in registry.registry().values():
        assert data.citation in page
        assert data.page in page
    check = [sys.executable, str(ROOT / "data_scripts" / "page.py"), "--check"]
    assert subprocess.run(check, check=False).returncode == 0
