# SPDX-License-Identifier: Apache-2.0
"""What a command line is called, and what OTEL_RESOURCE_ATTRIBUTES says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.identity.process import resource_attributes, service_name

PYTHON, JAVA, NODE = "/usr/bin/python3.11", "/opt/jdk/bin/java", "/usr/bin/node"

NAMES = [
    # Python: its options, alone, in clusters, with values beside and behind them
    (PYTHON, "python -m http.server 8000", "http.server"),
    (PYTHON, "python app.py", "app"),
    (PYTHON, "python3.11 /srv/shop/app.py --port 80", "app"),
    (PYTHON, "python3 -Bu -X dev -W ignore::Warning /srv/shop.py", "shop"),
    (PYTHON, "python3 -Xdev -Wignore -um shop.web", "shop.web"),
    (PYTHON, "python3 -mshop", "shop"),
    (PYTHON, "python3 -m shop.__main__", "shop"),
    (PYTHON, "python3 --check-hash-based-pycs always -- shop.py", "shop"),
    (PYTHON, "python3 -c CODE app.py", "python"),
    (PYTHON, "python3 -Ic CODE", "python"),
    (PYTHON, "python3", "python"),
    (PYTHON, "python3 - app.py", "python"),
    (PYTHON, "python3 -m", "python"),
    (PYTHON, "python3 /srv/shop/", "shop"),
    (PYTHON, "python3 /srv/shop.pyz", "shop"),
    (PYTHON, "python3 /usr/bin/shop-server-1.2", "shop-server-1.2"),
    ("/opt/pypy/bin/pypy3.10", "pypy3 shop.py", "shop"),
    # Python's application servers
    (PYTHON, "/venv/bin/python /venv/bin/gunicorn -w 4 -b 0.0.0.0:8000 shop.wsgi:app", "shop"),
    (PYTHON, "python gunicorn --bind localhost:80 -k uvicorn.workers.UvicornWorker shop.main:create_app()", "shop"),
    (PYTHON, "python gunicorn --bind unix:/run/shop.sock shop.wsgi", "shop"),
    (PYTHON, "python gunicorn --bind=:80 --reload shop.wsgi", "shop"),
    (PYTHON, "python gunicorn shop.wsgi -w 4", "gunicorn"),
    (PYTHON, "python gunicorn -c conf.py", "gunicorn"),
    (PYTHON, "python gunicorn", "gunicorn"),
    (PYTHON, "python -m uvicorn shop.api:app --host 127.0.0.1 --port 80", "shop"),
    (PYTHON, "python /usr/local/bin/uvicorn --factory main:make", "main"),
    (PYTHON, "python hypercorn asgi:shop.api:app", "shop"),
    (PYTHON, "python hypercorn wsgi:app", "wsgi"),
    (PYTHON, "python /usr/bin/celery -A shop.tasks worker -l info", "shop"),
    (PYTHON, "python celery --app=shop:app beat", "shop"),
    (PYTHON, "python celery worker", "celery"),
    (PYTHON, "python -m flask --app shop.web:create run", "shop"),
    (PYTHON, "python flask --app src/shop.py run", "shop"),
    (PYTHON, "python flask run --debug", "flask"),
    # Java
    (JAVA, "java -Xmx1g -jar /x/orders-1.2.jar --spring.profiles.active=prod", "orders"),
    (JAVA, "java -jar orders-service-0.0.1-SNAPSHOT.jar", "orders-service"),
    (JAVA, "java -jar s3-proxy-2.0.0-jar-with-dependencies.jar", "s3-proxy"),
    (JAVA, "java -jar base64-tool.jar", "base64-tool"),
    (JAVA, "java -jar orders-2.jar", "orders"),
    (JAVA, "java -jar 1.0.jar", "1.0"),
    (JAVA, "java -cp /x/a.jar:/x/b.jar -Dx=y -XX:+UseZGC com.acme.Main arg", "com.acme.Main"),
    (
        JAVA,
        "java --module-path mods --add-opens java.base/java.lang=ALL-UNNAMED -m com.acme/com.acme.Main",
        "com.acme.Main",
    ),
    (JAVA, "java --module com.acme", "com.acme"),
    (JAVA, "java -javaagent:/x/agent.jar=a=b @options com.acme.Main", "com.acme.Main"),
    (JAVA, "java /srv/Shop.java", "Shop"),
    (JAVA, "java -jar", "java"),
    (JAVA, "java -version", "java"),
    # Node
    (NODE, "node /srv/web/server.js", "server"),
    (NODE, "node --inspect dist/main.js", "main"),
    (NODE, "node -r ./trace.js --import ./x.mjs --max-old-space-size=4096 shop.mjs", "shop"),
    (NODE, "node --require=./trace.js shop", "shop"),
    (NODE, "node -e CODE", "node"),
    (NODE, "node .", "node"),
    ("/usr/bin/nodejs", "nodejs /srv/node_modules/.bin/next start", "next"),
    # the others
    ("/usr/bin/ruby3.1", "ruby -W:no-deprecated -I lib /usr/bin/puma -C config.rb", "puma"),
    ("/usr/bin/ruby3.1", "ruby -rsocket -e CODE", "ruby"),
    ("/usr/bin/php8.2", "php -d memory_limit=1G artisan.php serve", "artisan"),
    ("/usr/bin/php8.2", "php -S 0.0.0.0:80 -t public", "php"),
    ("/usr/bin/php8.2", "php -f /srv/shop.php", "shop"),
    ("/usr/bin/perl", "perl -MData::Dumper -wT /srv/shop.pl", "shop"),
    ("/usr/bin/perl", "perl -lane CODE", "perl"),
    ("/usr/bin/dotnet", "dotnet Acme.Shop.dll --urls http://+:80", "Acme.Shop"),
    ("/usr/bin/dotnet", "dotnet exec --runtimeconfig x.json Shop.dll", "Shop"),
    ("/usr/bin/dotnet", "dotnet run --project Shop", "dotnet"),
    ("/usr/bin/dash", "sh script.sh", "script"),
    ("/usr/bin/bash", "-bash", "bash"),
    ("/usr/bin/bash", "bash -euo pipefail /srv/start.sh", "start"),
    ("/usr/bin/bash", "bash +x -o posix start.bash", "start"),
    ("/usr/bin/dash", "sh -ec CODE", "dash"),
    ("/bin/busybox", "httpd -f -p 80", "httpd"),
    ("/bin/busybox", "/bin/sh /start.sh", "start"),
    # no interpreter: the file, whatever the arguments say
    ("/usr/sbin/nginx", "nginx -g daemon", "nginx"),
    ("/srv/shop/server", "./server shop.py", "server"),
    ("/usr/sbin/php-fpm8.2", "php-fpm", "php-fpm"),
    ("/usr/bin/python3-config", "python3-config x.py", "python3-config"),
    # /proc/PID/exe could not be read
    ("", "/usr/bin/python3 -m http.server", "http.server"),
    ("", "-zsh", "zsh"),
    ("", "", ""),
]


@pytest.mark.parametrize(("path", "command", "name"), NAMES, ids=[command for _, command, _ in NAMES])
def test_a_command_line_is_called(path, command, name):
    assert service_name(path, command.split()) == name


@pytest.mark.parametrize(
    ("path", "title", "name"),
    [
        ("/usr/sbin/nginx", "nginx: worker process", "nginx"),
        ("", "nginx: worker process", "nginx"),
        (PYTHON, "gunicorn: worker [shop.wsgi:app]", "shop"),
        (PYTHON, "gunicorn: master [shop]", "shop"),
        (PYTHON, "celeryd: shop@host:MainProcess", "celeryd"),
        ("/usr/bin/ruby", "puma 6.4.0 (tcp://0.0.0.0:80) [shop]", "puma"),
        (NODE, "node /srv/shop.js --token x", "shop"),
        (NODE, "npm start", "npm"),
        ("/opt/My App/server", "/opt/My App/server", "server"),
    ],
)
def test_a_rewritten_title_is_called(path, title, name):
    assert service_name(path, [title]) == name


@given(
    st.sampled_from([PYTHON, JAVA, NODE, "/usr/bin/dotnet", "/usr/bin/perl", "/bin/sh", ""]),
    st.lists(st.text() | st.sampled_from(["-m", "-c", "-jar", "-A", "--app", "--", "-", "exec", "gunicorn", "a:b"])),
)
def test_every_command_line_has_a_name(path, argv):
    assert isinstance(service_name(path, argv), str)


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("", {}),
        ("a=b", {"a": "b"}),
        ("service.name=shop,team=a%20b%2Cc", {"service.name": "shop", "team": "a b,c"}),
        (" a = b ,c=d,", {"a": "b", "c": "d"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("k%C3%A9y=%C3%A9t%C3%A9", {"kéy": "été"}),
        ("a=%FF", {"a": "\ufffd"}),
        ("a=1+1", {"a": "1+1"}),
        ("a=b,c", None),
        ("a=b,=c", None),
        ("a=100%", None),
        ("a=b,c=%zz", None),
    ],
)
def test_resource_attributes_are_all_there_or_ignored(text, attributes):
    assert resource_attributes(text) == attributes
