"""Which addresses are called, and that a call goes nowhere else: a table of addresses, and real sockets."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from carbon_points.webhooks.sending import (
    AddressRefused,
    Allowed,
    Answer,
    Sender,
    WebhookUrlInvalid,
    outside,
    retry_after_seconds,
)
from tests.webhooks.receiver import Receiver, Say, receiving

HERE = Allowed(http=True, internal=True)

INSIDE = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.1.1",
    "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.1", "192.0.2.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]  # fmt: skip
OUTSIDE = [
    "1.1.1.1",
    "47.96.0.1",
    "223.5.5.5",
    "2400:3200::1",
    "2606:4700:4700::1111",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
]


class TestAddresses:
    @pytest.mark.parametrize("address", INSIDE)
    def test_an_address_inside_is_not_called_however_it_is_written(self, address: str) -> None:
        assert not outside(ipaddress.ip_address(address))
        with pytest.raises(AddressRefused):
            Allowed().addresses("hooks.example.com", [address])
        with pytest.raises(AddressRefused):
            Allowed().addresses("hooks.example.com", ["1.1.1.1", address])
        host = f"[{address}]" if ":" in address else address
        with pytest.raises(WebhookUrlInvalid):
            Allowed().check(f"https://{host}/hook")

    @pytest.mark.parametrize("address", OUTSIDE)
    def test_a_public_address_is_called(self, address: str) -> None:
        assert Allowed().addresses("hooks.example.com", [address]) == [address]

    def test_a_name_without_addresses_is_not_called(self) -> None:
        with pytest.raises(AddressRefused):
            Allowed().addresses("hooks.example.com", [])

    def test_in_a_closed_network_addresses_inside_are_called(self) -> None:
        assert Allowed(internal=True).addresses("pos", ["10.0.0.1"]) == ["10.0.0.1"]


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "https://pos.example.com",
            "https://pos.example.com/hooks/1?of=me",
            "https://pos.example.com:8443/",
            "https://xn--fiqs8s.cn/hook",
            "https://47.96.0.1/hook",
            "https://[2400:3200::1]/hook",
        ],
    )
    def test_a_public_address_is_taken(self, url: str) -> None:
        Allowed().check(url)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "hook",
            "//pos.example.com/",
            "http://pos.example.com/",
            "ftp://pos.example.com/",
            "file:///etc/passwd",
            "https://",
            "https:///hook",
            "https://me:secret@pos.example.com/",
            "https://pos.example.com@127.0.0.1/",
            "https://pos.example.com:22/",
            "https://pos.example.com:80/",
            "https://pos.example.com:0/",
            "https://pos.example.com:65536/",
            "https://pos.example.com:x/",
            "https://pos.example.com/#part",
            "https://pos.example.com/a b",
            "https://pos.example.com/\r\nX: y",
            "https://例子.中国/",
            "https://[::1/",
            "https://localhost/",
            "https://admin.localhost/",
            "https://metadata.google.internal/",
            "https://pos.example.com/" + "x" * 500,
        ],
    )
    def test_anything_else_is_refused(self, url: str) -> None:
        with pytest.raises(WebhookUrlInvalid):
            Allowed().check(url)

    def test_plain_http_is_for_development(self) -> None:
        Allowed(http=True).check("http://pos.example.com:80/")
        with pytest.raises(WebhookUrlInvalid):
            Allowed(internal=True).check("http://pos.example.com/")


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (None, 0), ("", 0), ("soon", 0), ("0", 0), ("7", 7), ("-7", 0), ("999999999999", 3_600), ("1e9", 0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40), ("Thu, 01 Jan 1970 00:00:10 GMT", 0), ("Thu, 99 Jan", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3_600),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_bounded(told: str | None, seconds: float) -> None:
    assert retry_after_seconds(told, 60.0, 3_600) == seconds


# -- real sockets ----------------------------------------------------------------------------------------------------


def sent(url: str, allowed: Allowed = HERE, *, body: bytes = b"{}", timeout: float = 5, **more: object) -> Answer:
    async def run() -> Answer:
        sender = Sender(allowed, agent="test", **more)  # type: ignore[arg-type]
        try:
            return await sender.post(url, {"webhook-id": "evt_1"}, body, timeout)
        finally:
            await sender.aclose()

    return asyncio.run(run())


def test_a_message_arrives_as_it_was_given() -> None:
    with receiving() as receiver:
        assert sent(receiver.url, body=b'{"a":1}') == Answer(200)
        [got] = receiver.got
    assert (got.body, got.path, got.id, got.headers["user-agent"]) == (b'{"a":1}', "/hook", "evt_1", "test")


@pytest.mark.parametrize("status", [204, 301, 302, 307, 400, 404, 410, 429, 500, 503])
def test_whatever_is_answered_is_the_answer_and_no_redirect_is_followed(status: int) -> None:
    with receiving() as receiver:
        receiver.says(Say(status, {"location": receiver.url, "retry-after": "9"}), 200)
        answer = sent(receiver.url)
        assert answer == Answer(status, retry_after="9")
        assert answer.ok == (status == 204)
        assert len(receiver.got) == 1


@pytest.mark.parametrize("said", [Say(before=600), Say(drip=True, headers={"content-length": "1000"})])
def test_who_does_not_answer_in_time_has_not_answered(said: Say) -> None:
    with receiving() as receiver:
        receiver.says(said)
        begun = time.monotonic()
        assert sent(receiver.url, timeout=0.3).error == "no answer within 0.3 s"
        assert time.monotonic() - begun < 30, (
            "the first would take ten minutes, and the second is an answer in ten seconds"
        )


def test_a_body_without_end_is_not_read() -> None:
    with receiving() as receiver:
        receiver.says(Say(drip=True))
        begun = time.monotonic()
        assert sent(receiver.url) == Answer(200)
        assert time.monotonic() - begun < 30, "all that it sends would take ten minutes"


def test_nobody_there_is_an_answer_too() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        answer = sent(f"http://127.0.0.1:{free.getsockname()[1]}/")
    assert answer.status is None
    assert answer.why.startswith("ConnectError")


def test_bytes_that_are_no_http_are_an_answer_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        async def run() -> Answer:
            def talk() -> None:
                connection, _ = server.accept()
                with connection:
                    heard = b""
                    while not heard.endswith(b"{}"):  # what is left unread when it is closed would reset it
                        heard += connection.recv(1000)
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n")

            talking = asyncio.get_running_loop().run_in_executor(None, talk)
            sender = Sender(HERE, agent="test")
            answer = await sender.post(f"http://127.0.0.1:{server.getsockname()[1]}/", {}, b"{}")
            await talking
            await sender.aclose()
            return answer

        assert "ProtocolError" in asyncio.run(run()).why


class TestNames:
    """`resolve` stands for the world's name servers, which strangers control."""

    def test_a_name_that_means_an_address_inside_is_not_called(self) -> None:
        with receiving() as receiver:
            port = receiver.url.split(":")[2]
            answer = sent(f"http://pos.example.com:{port}", Allowed(http=True), resolve=lambda *_: ["127.0.0.1"])
            assert not receiver.got
        assert "not called" in answer.why
        assert "127.0.0.1" in answer.why

    @pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1"])
    def test_numbers_that_the_system_reads_as_addresses_inside_are_not_called(self, host: str) -> None:
        assert "not called" in sent(f"https://{host}/", Allowed()).why

    def test_a_name_is_looked_up_once_and_the_address_that_was_looked_at_is_called(self) -> None:
        """A name server that answers otherwise the second time (DNS rebinding) leads nowhere."""
        answers = [["127.0.0.1"], ["10.255.255.1"]]
        asked: list[str] = []

        def rebinding(host: str, _port: int) -> list[str]:
            asked.append(host)
            return answers[len(asked) - 1]

        with receiving() as receiver:
            url = receiver.url.replace("127.0.0.1", "pos.example.com")
            assert sent(url, resolve=rebinding) == Answer(200)
            assert receiver.got[0].headers["host"].startswith("pos.example.com:")
        assert asked == ["pos.example.com"]

    def test_a_name_that_nobody_knows_is_an_answer_too(self) -> None:
        def unknown(_host: str, _port: int) -> list[str]:
            raise socket.gaierror(-2, "Name or service not known")

        assert sent("https://pos.example.com/", resolve=unknown) == Answer(None, "the name has no address")

    def test_no_proxy_of_the_environment_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiving() as receiver, receiving() as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            assert sent(receiver.url) == Answer(200)
            assert not proxy.got


class TestTls:
    def test_the_name_of_the_url_is_asked_for_and_must_be_proven(self, tmp_path: Path) -> None:
        server, trusting = certified("hooks.example.com", tmp_path)
        names: list[str | None] = []
        server.sni_callback = lambda _socket, name, _context: names.append(name)
        with receiving(server) as receiver:
            assert here(receiver, "hooks.example.com", trusting) == Answer(200)
            assert receiver.got[0].headers["host"].startswith("hooks.example.com:")
            assert names == ["hooks.example.com"]
            wrong = here(receiver, "other.example.com", trusting)
            assert wrong.status is None
            assert "certificate" in wrong.why
            unknown = here(receiver, "hooks.example.com", None)
            assert "certificate" in unknown.why
            assert len(receiver.got) == 1


def here(receiver: Receiver, name: str, tls: ssl.SSLContext | None) -> Answer:
    url = receiver.url.replace("hooks.example.com", name)
    return sent(url, Allowed(internal=True), resolve=lambda *_: ["127.0.0.1"], tls=tls)


def certified(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server that proves a name, and a client that believes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    client = ssl.create_default_context(cadata=certificate.public_bytes(serialization.Encoding.PEM).decode())
    return server, client
