// Command probe answers, over HTTP, what a pod can see of the cluster: the tests run it in a pod and ask it.
//
//	/readyz           200 once it serves
//	/hostname         the pod's name
//	/lookup?host=H    the addresses H resolves to, one a line
//	/get?url=U        the body of a GET of U
//	/connect?to=H:P   200 when a TCP connection opens
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// timeout bounds what one question may take; the tests ask again until their own deadline.
const timeout = 3 * time.Second

func main() {
	address := ":8080"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	client := &http.Client{Timeout: timeout}

	http.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) {
		name, err := os.Hostname()
		answer(w, name, err)
	})
	http.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(ctx, r.URL.Query().Get("host"))
		answer(w, strings.Join(addresses, "\n"), err)
	})
	http.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		response, err := client.Get(r.URL.Query().Get("url"))
		if err != nil {
			answer(w, "", err)
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		answer(w, string(body), err)
	})
	http.HandleFunc("/connect", func(w http.ResponseWriter, r *http.Request) {
		connection, err := net.DialTimeout("tcp", r.URL.Query().Get("to"), timeout)
		if err == nil {
			connection.Close()
		}
		answer(w, "connected", err)
	})

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, "serving on", address)
	fmt.Fprintln(os.Stderr, http.ListenAndServe(address, nil))
	os.Exit(1)
}

func answer(w http.ResponseWriter, text string, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprintln(w, text)
}
