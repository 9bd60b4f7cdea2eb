// Command session is what the Dagger SDK starts to reach an engine:
//
//	session session --label k:v ... [--workdir DIR] [--version V]
//
// It connects to the engine that _EXPERIMENTAL_DAGGER_RUNNER_HOST names, prints one line of JSON
// with a port and a token, and serves the API there until its standard input closes. The official
// CLI does the same, but cannot be built here: its terminal UI needs modules that are not served.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/dagger/dagger/engine"
	"github.com/dagger/dagger/engine/client"
	"github.com/dagger/dagger/engine/client/imageload"
	telemetry "github.com/dagger/otel-go"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
)

const (
	runnerHostEnv = "_EXPERIMENTAL_DAGGER_RUNNER_HOST"
	imageStoreEnv = "_EXPERIMENTAL_DAGGER_RUNNER_IMAGESTORE"

	// How long the engine may take to say goodbye.
	farewell = 30 * time.Second
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "session:", strings.Join(strings.Fields(err.Error()), " "))
		os.Exit(1)
	}
}

func run(args []string) error {
	version, err := parse(args)
	if err != nil {
		return err
	}
	// A terminal sends SIGINT to the whole group: the SDK decides what that means, and closes
	// our input when it is done. SIGPIPE must not kill us before the engine is told.
	signal.Ignore(syscall.SIGINT, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()

	ctx = telemetry.Init(ctx, telemetry.Config{Detect: true, Resource: describe(ctx)})
	defer telemetry.Close()
	ctx, span := otel.Tracer("cresset.session").Start(ctx, "session")
	defer telemetry.EndWithCause(span, &err)

	err = serve(ctx, version)
	return err
}

// parse returns the version that the SDK claims; labels are accepted, as the official CLI does.
func parse(args []string) (string, error) {
	if len(args) == 0 || args[0] != "session" {
		return "", errors.New("usage: session session [--label k:v] [--workdir DIR] [--version V]")
	}
	flags := flag.NewFlagSet("session", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("label", "", func(string) error { return nil })
	workdir := flags.String("workdir", "", "")
	version := flags.String("version", "", "")
	if err := flags.Parse(args[1:]); err != nil {
		return "", err
	}
	if *workdir == "" {
		return *version, nil
	}
	return *version, os.Chdir(*workdir)
}

func describe(ctx context.Context) *resource.Resource {
	// What New could not find out it leaves out; the rest is good.
	res, _ := resource.New(ctx,
		resource.WithAttributes(
			attribute.String("service.name", "cresset-session"),
			attribute.String("service.version", engine.Version),
		),
		resource.WithFromEnv(),
	)
	return res
}

// serve answers the SDK on a loopback port until ctx ends.
func serve(ctx context.Context, version string) (err error) {
	token := uuid.NewString()
	sess, err := connect(ctx, version, token)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, farewellTo(sess)) }()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := http.Server{
		Handler:           sess,
		ReadHeaderTimeout: 30 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	// Closing cuts the requests that still run, and with them the work that nobody waits for.
	defer context.AfterFunc(ctx, func() { server.Close() })()

	hello := struct {
		Port  int    `json:"port"`
		Token string `json:"session_token"`
	}{listener.Addr().(*net.TCPAddr).Port, token}
	if err := json.NewEncoder(os.Stdout).Encode(hello); err != nil {
		return err
	}
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func connect(ctx context.Context, version, token string) (*client.Client, error) {
	host := os.Getenv(runnerHostEnv)
	if host == "" {
		return nil, fmt.Errorf("%s is not set: it names the engine, as unix:///path or tcp://host:port", runnerHostEnv)
	}
	// The client would try for minutes to reach an engine that is not there.
	if err := probe(ctx, host); err != nil {
		return nil, err
	}
	params := client.Params{
		RunnerHost:    host,
		SecretToken:   token,
		Version:       version,
		EngineTrace:   telemetry.SpanForwarder{Processors: telemetry.SpanProcessors},
		EngineLogs:    telemetry.LogForwarder{Processors: telemetry.LogProcessors},
		EngineMetrics: telemetry.MetricExporters,
	}
	// Over unix:// and tcp:// the client cannot know where images are to be loaded.
	if store := os.Getenv(imageStoreEnv); store != "" {
		backend, err := imageload.GetBackend(store)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", imageStoreEnv, err)
		}
		params.ImageLoaderBackend = backend
	}
	return client.Connect(ctx, params)
}

// farewellTo ends the session, or returns an error where the engine is gone. The client alone would
// wait for ever for the telemetry of an engine that was killed.
func farewellTo(sess *client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	if err := probe(ctx, sess.RunnerHost); err != nil {
		return err
	}
	closed := make(chan error, 1)
	go func() { closed <- sess.Close() }()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case err := <-closed:
			return err
		case <-again.C:
			if err := probe(ctx, sess.RunnerHost); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("the engine did not end the session within %s", farewell)
		}
	}
}

// probe returns an error where nothing listens at the engine's address. Only a local engine and one
// at a plain port can be asked cheaply, and not through the client, which may be closing.
func probe(ctx context.Context, host string) error {
	network, address, _ := strings.Cut(host, "://")
	if network != "unix" && network != "tcp" {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return fmt.Errorf("the engine does not answer: %w", err)
	}
	return conn.Close()
}
