// SPDX-License-Identifier: Apache-2.0

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.Executors;

/**
 * The tests' application in Java: java Server.java PORT. /proxy/N asks $UPSTREAM/items/N. One thread accepts, eight
 * answer, and the client has threads of its own.
 */
class Server {
	static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

	static void answer(HttpExchange exchange, int status, String kind, byte[] body) throws IOException {
		exchange.getResponseHeaders().set("Content-Type", kind);
		exchange.sendResponseHeaders(status, body.length);
		exchange.getResponseBody().write(body);
		exchange.close();
	}

	static void parts(HttpExchange exchange, String kind, String part, int n, int pauseMs) throws Exception {
		exchange.getResponseHeaders().set("Content-Type", kind);
		exchange.sendResponseHeaders(200, 0); // chunked
		for (int i = 0; i < n; i++) {
			if (i > 0)
				Thread.sleep(pauseMs);
			exchange.getResponseBody().write(part.getBytes());
			exchange.getResponseBody().flush();
		}
		exchange.close();
	}

	static void serve(HttpExchange exchange) throws Exception {
		String[] path = exchange.getRequestURI().getPath().substring(1).split("/", 2);
		switch (path[0]) {
		case "hello" -> answer(exchange, 200, "text/plain", "hello\n".getBytes());
		case "items" -> answer(exchange, 200, "application/json", ("{\"item\": " + path[1] + "}").getBytes());
		case "fail" -> answer(exchange, 500, "text/plain", "failed\n".getBytes());
		case "slow" -> {
			Thread.sleep(Integer.parseInt(exchange.getRequestURI().getQuery().substring("ms=".length())));
			answer(exchange, 200, "text/plain", "slow\n".getBytes());
		}
		case "stream" -> parts(exchange, "text/plain", "part\n", 5, 150);
		case "sse" -> parts(exchange, "text/event-stream", "data: event\n\n", 3, 300);
		case "echo" -> answer(exchange, 200, "application/octet-stream", exchange.getRequestBody().readAllBytes());
		case "proxy" -> {
			URI uri = URI.create(System.getenv("UPSTREAM") + "/items/" + path[1]);
			HttpResponse<byte[]> response =
				CLIENT.send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofByteArray());
			answer(exchange, response.statusCode(), "application/json", response.body());
		}
		default -> answer(exchange, 404, "text/plain", "missing\n".getBytes());
		}
	}

	public static void main(String[] args) throws IOException {
		HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 128);
		server.setExecutor(Executors.newFixedThreadPool(8));
		server.createContext("/", exchange -> {
			try {
				serve(exchange);
			} catch (IOException e) {
				throw e;
			} catch (Exception e) {
				throw new IOException(e);
			}
		});
		server.start();
	}
}
