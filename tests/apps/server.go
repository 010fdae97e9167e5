// SPDX-License-Identifier: Apache-2.0

// The tests' application in Go: server PORT. /proxy/N asks $UPSTREAM/items/N. A request that is waited for may go on
// on another thread.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func answer(w http.ResponseWriter, status int, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

func parts(w http.ResponseWriter, kind string, part string, n int, pause time.Duration) {
	w.Header().Set("Content-Type", kind)
	for i := 0; i < n; i++ {
		if i > 0 {
			time.Sleep(pause)
		}
		io.WriteString(w, part)
		w.(http.Flusher).Flush()
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	head, tail, _ := strings.Cut(r.URL.Path[1:], "/")
	switch head {
	case "hello":
		answer(w, 200, "text/plain", []byte("hello\n"))
	case "items":
		answer(w, 200, "application/json", []byte(fmt.Sprintf(`{"item": %s}`, tail)))
	case "fail":
		answer(w, 500, "text/plain", []byte("failed\n"))
	case "slow":
		ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		answer(w, 200, "text/plain", []byte("slow\n"))
	case "stream":
		parts(w, "text/plain", "part\n", 5, 150*time.Millisecond)
	case "sse":
		parts(w, "text/event-stream", "data: event\n\n", 3, 300*time.Millisecond)
	case "echo":
		body, _ := io.ReadAll(r.Body)
		answer(w, 200, "application/octet-stream", body)
	case "proxy":
		response, err := http.Get(os.Getenv("UPSTREAM") + "/items/" + tail)
		if err != nil {
			answer(w, 502, "text/plain", []byte(err.Error()))
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answer(w, response.StatusCode, "application/json", body)
	default:
		answer(w, 404, "text/plain", []byte("missing\n"))
	}
}

func main() {
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(serve)))
}
