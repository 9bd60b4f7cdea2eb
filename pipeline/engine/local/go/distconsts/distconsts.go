// Package distconsts says where things lie in the engine's own root file system (../../rootfs.py
// and ../../build.py put them there) and names what an official engine image would bring and ours does not.
package distconsts

// Paths in the engine's root file system.
const (
	RuncPath                         = "/usr/sbin/runc"
	DaggerInitPath                   = "/usr/local/bin/dagger-init"
	EngineDefaultStateDir            = "/var/lib/dagger"
	EngineContainerBuiltinContentDir = "/usr/local/share/dagger/content"
	EngineCustomCACertsDir           = "/usr/local/share/ca-certificates"
)

const (
	// EngineContainerName is used by the client when it drives a container runtime; we never do.
	EngineContainerName = "cresset-engine"

	DefaultEngineSockAddr = "unix:///run/dagger/engine.sock"
)

// Module SDKs are shipped inside official engine images. Ours has none, so these variables
// are never set and a module that needs one is refused by the engine.
const (
	GoSDKManifestDigestEnvName         = "DAGGER_GO_SDK_MANIFEST_DIGEST"
	PythonSDKManifestDigestEnvName     = "DAGGER_PYTHON_SDK_MANIFEST_DIGEST"
	TypescriptSDKManifestDigestEnvName = "DAGGER_TYPESCRIPT_SDK_MANIFEST_DIGEST"
)

// Images that the engine reaches for by itself: AlpineImage is what a terminal on a directory runs.
const (
	AlpineVersion = "3.22.1"
	AlpineImage   = "alpine:" + AlpineVersion
	GolangImage   = "golang:1.26-alpine"
	BusyboxImage  = "busybox:1.37.0-uclibc"
)

// OCIVersionAnnotation is the standard annotation that carries an image's version.
const OCIVersionAnnotation = "org.opencontainers.image.version"
